"""Metrics as pure functions of features or of their moments, one per file. The names of the features come with the
numbers: a Fréchet distance is no FID unless the features are Inception's under the ADM protocol.
"""
