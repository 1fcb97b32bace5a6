"""CMMD (Jayasumana et al., 2024): the MMD² of two sets of CLIP embeddings with a Gaussian kernel."""

import torch
from torch.nn.functional import normalize

from ard.errors import InputError, require_at_least
from ard.types import Features, OtherFeatures

_SIDE = 4_096  # Rows and columns of a tile of the kernel: 128 MiB in float64.


def cmmd(first: Features, second: OtherFeatures, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """The MMD², times scale, with the kernel exp(-|x - y|² / (2 sigma²)), in float64.

    The estimate is the biased one, a V-statistic, as in the authors' code: pairs of a sample with itself count, so
    that small sets differ more. The embeddings are scaled to unit length first. The authors' code does that in the
    network, and sigma = 10 has been chosen for it. Doing it here makes the number the same for networks which do it
    and for those that do not. InputError where a set is empty or sigma is not above zero.
    """
    require_at_least(1, {"the number of first samples": len(first), "the number of second samples": len(second)})
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}; it must be above 0")
    x, y = (normalize(features.double(), dim=1) for features in (first, second))
    gamma = 1 / (2 * sigma**2)
    return scale * (_mean_kernel(x, x, gamma) + _mean_kernel(y, y, gamma) - 2 * _mean_kernel(x, y, gamma))


def _mean_kernel(x: Features, y: OtherFeatures, gamma: float) -> float:
    """The mean of exp(-gamma |x - y|²) over all pairs, tile by tile."""
    sums = [
        float(torch.exp(-gamma * torch.cdist(rows, columns).square()).sum())
        for rows in x.split(_SIDE)
        for columns in y.split(_SIDE)
    ]
    return sum(sums) / (len(x) * len(y))
