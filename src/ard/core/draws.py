"""Random numbers from a generator: the same whatever torch's default type is."""

import torch
from torch import Generator, Tensor


def normal(shape: tuple[int, ...] | torch.Size, *, generator: Generator | None) -> Tensor:
    """Normal numbers in float32, made where `generator` is; from torch's own on the CPU without one."""
    device = generator.device if generator else "cpu"
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


def uniform(shape: tuple[int, ...] | torch.Size, *, generator: Generator) -> Tensor:
    """Numbers from 0 to 1 in float32, made where `generator` is."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
