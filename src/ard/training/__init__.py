"""Training: one loop and its exact checkpoints, for teachers and for students."""
