"""The random numbers of a process that calls a command stay its own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Put torch's generator back afterwards: new networks draw from it, before they are loaded or drawn by address."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield
