"""Images to numbers: features of a small classifier, distances between distributions, paired errors."""
