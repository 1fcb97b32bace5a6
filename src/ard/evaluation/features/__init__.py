"""Feature networks, one per file: uint8 pictures to features, from local weights only."""
