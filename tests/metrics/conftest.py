"""What the tests of the metrics share: seeded normal features, and features of which mean and covariance are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def seeded_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """normal(*shape, seed=0): features in float64."""
    return seeded_normal


@pytest.fixture(scope="session")
def exact_sample() -> Callable[..., Tensor]:
    """exact_sample(mean, root): features whose mean is `mean` and whose covariance is root @ root.T, up to rounding."""

    def make(mean: Tensor, root: Tensor, *, rows: int = 64, seed: int = 0) -> Tensor:
        raw = seeded_normal(rows, len(mean), seed=seed)
        orthonormal = torch.linalg.qr(raw - raw.mean(dim=0)).Q  # Columns stay free of a mean.
        return mean + orthonormal * (rows - 1) ** 0.5 @ root.T

    return make
