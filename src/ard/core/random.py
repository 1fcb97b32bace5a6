"""Randomness is addressed, not consumed: what a step draws depends on its seed and number only."""

import functools
import hashlib

import torch
from torch import Tensor


def generator_for(*address: object) -> torch.Generator:
    """A CPU generator for an address such as ("noise", seed, step)."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def batch_ids(length: int, *, seed: int, step: int, batch: int) -> Tensor:
    """The rows of step `step`: `length` rows in a new order each epoch, cut into batches that may span epochs."""
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs, places = positions // length, positions % length
    return torch.stack([_order(length, seed, int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])


@functools.lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=generator_for("order", seed, epoch))
