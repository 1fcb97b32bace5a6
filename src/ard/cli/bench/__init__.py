"""ard bench: what takes how long, and how far it is from what the machine can do."""
