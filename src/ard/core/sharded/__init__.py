"""Stores in shards: trajectories, latents and encoded prompts are claimed, made, checked and read in one way."""
