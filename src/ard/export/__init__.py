"""A student as a folder of diffusers."""
