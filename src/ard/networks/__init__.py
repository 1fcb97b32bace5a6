"""Networks: the diffusion transformer, the student around it, and their folders."""
