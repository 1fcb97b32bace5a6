"""The kernel distance: an unbiased MMD² with a cubic kernel, which on Inception's features is KID."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ard.core.errors import InputError, require_at_least
from ard.core.types import Features, OtherFeatures


class KernelDistance(NamedTuple):
    """Over the subsets. The estimate is unbiased, so it may lie below zero where the sets are alike."""

    mean: float
    std: float


def kernel_distance(
    first: Features, second: OtherFeatures, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Mean and standard deviation of MMD² over random subsets, in float64 (Binkowski et al., 2018, Section 4).

    Subset i depends on the seed and i alone. InputError where a set is smaller than a subset.
    """
    require_at_least(1, {"subsets": subsets})
    require_at_least(2, {"subset_size": subset_size})
    require_at_least(0, {"seed": seed})
    smaller = min(len(first), len(second))
    if subset_size > smaller:
        raise InputError(f"subset_size is {subset_size}, but one set has {smaller} samples only; {smaller} is allowed")
    generators = [np.random.default_rng([seed, subset]) for subset in range(subsets)]
    drawn = [(_drawn(first, subset_size, one), _drawn(second, subset_size, one)) for one in generators]
    values = torch.stack([_mmd(first[rows].double(), second[others].double()) for rows, others in drawn])
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def _drawn(features: Features, subset_size: int, generator: np.random.Generator) -> Int[Tensor, " subset"]:
    """The rows of a subset, none twice."""
    return torch.from_numpy(generator.choice(len(features), subset_size, replace=False))


def _mmd(x: Features, y: Features) -> Float[Tensor, ""]:
    """MMD² of two sets of the same size m, unbiased: no sample is compared with itself."""
    m = len(x)
    kernels = _kernel(x, x) + _kernel(y, y)
    within = (kernels.sum() - kernels.diagonal().sum()) / (m * (m - 1))
    return within - 2 * _kernel(x, y).mean()


def _kernel(x: Features, y: Features) -> Float[Tensor, "sample sample"]:
    """(x·y / d + 1)³ with d features (Section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
