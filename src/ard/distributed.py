"""Rank and world size as torchrun sets them; one process is rank 0 of 1."""

import os


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
