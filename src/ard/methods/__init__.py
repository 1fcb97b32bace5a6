"""How a student is trained: the losses and what is trained beside it."""
