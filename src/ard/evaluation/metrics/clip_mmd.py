"""CMMD (Jayasumana et al., 2024): the MMD² of two sets of CLIP embeddings with a Gaussian kernel."""

from torch.nn.functional import normalize

from ard.core.errors import InputError, require_at_least
from ard.core.types import Features, OtherFeatures

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
    return scale * (_mean_within(x, gamma) + _mean_within(y, gamma) - 2 * _mean_between(x, y, gamma))


def _mean_within(x: Features, gamma: float) -> float:
    """The mean kernel over all pairs of one set. Tiles off the diagonal come once and count twice."""
    blocks = x.split(_SIDE)
    diagonal = sum(_sum_of_kernel(rows, rows, gamma) for rows in blocks)
    below = sum(_sum_of_kernel(rows, other, gamma) for place, rows in enumerate(blocks) for other in blocks[:place])
    return (diagonal + 2 * below) / len(x) ** 2


def _mean_between(x: Features, y: OtherFeatures, gamma: float) -> float:
    """The mean kernel over all pairs of two sets."""
    sums = [_sum_of_kernel(rows, others, gamma) for rows in x.split(_SIDE) for others in y.split(_SIDE)]
    return sum(sums) / (len(x) * len(y))


def _sum_of_kernel(x: Features, y: OtherFeatures, gamma: float) -> float:
    """The sum of exp(-gamma |x - y|²) with |x - y|² = |x|² + |y|² - 2 x·y, which is precise for unit vectors."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return float(squares.addmm_(x, y.T, alpha=-2).mul_(-gamma).exp_().sum())
