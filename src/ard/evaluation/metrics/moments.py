"""Mean and covariance of features: all that the Fréchet distance needs, gathered batch by batch and over ranks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.distributed import largest_over_ranks, sum_over_ranks
from ard.core.errors import InputError, require_at_least
from ard.core.types import Features


@dataclass(frozen=True, kw_only=True)
class Moments:
    """The Gaussian fitted to a set of features, in float64."""

    count: int
    """How many samples it was fitted to; 0 where that is not known."""
    mean: Float[Tensor, " feature"]
    covariance: Float[Tensor, "feature feature"]
    """The unbiased estimate, divided by count - 1 as in numpy.cov."""


class MomentsAccumulator:
    """Moments of features that arrive in batches, in float64.

    Kept are the count, the mean and the scatter matrix, the sum of the outer products of the deviations from the mean.
    Batches are merged with the pairwise formula of Chan, Golub and LeVeque (1983), which loses no digits where the
    mean is large, so the batch size does not matter beyond rounding.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Features) -> None:
        """Take in a batch of any size and precision."""
        batch = features.detach().double()
        if not len(batch):
            return
        if not self._count:
            self._make_room(batch)
        mean, count = batch.mean(dim=0), self._count + len(batch)
        gap = mean - self._mean
        between = (self._count * len(batch) / count) ** 0.5 * gap
        rows = torch.cat([batch - mean, between[None]])  # One product adds what is within and between the batches.
        self._scatter.addmm_(rows.T, rows)
        self._mean += len(batch) / count * gap
        self._count = count

    def all_reduce(self) -> None:
        """Merge with all other ranks, after which each holds the whole: call it once, after the last update."""
        width = largest_over_ranks(len(self._mean))
        if not self._count:  # A rank without a sample has not seen how wide the features are.
            self._make_room(torch.zeros(0, width, dtype=torch.float64))
        count = int(sum_over_ranks(torch.tensor(float(self._count), dtype=torch.float64)))
        mean = sum_over_ranks(self._count * self._mean) / max(count, 1)
        gap = self._mean - mean
        self._scatter = sum_over_ranks(self._scatter + self._count * gap.outer(gap))
        self._count, self._mean = count, mean

    def moments(self) -> Moments:
        """The moments of everything so far. InputError below two samples and where a feature is not finite."""
        require_at_least(2, {"the number of samples": self._count})
        if not self._scatter.isfinite().all():
            raise InputError(f"the features of {self._count} samples are not all finite; look for NaN in the images")
        return Moments(count=self._count, mean=self._mean.clone(), covariance=self._scatter / (self._count - 1))

    def _make_room(self, like: Features) -> None:
        self._mean, self._scatter = like.new_zeros(like.shape[1]), like.new_zeros(like.shape[1], like.shape[1])


def moments_of(features: Features) -> Moments:
    """The moments of one set of features."""
    accumulator = MomentsAccumulator()
    accumulator.update(features)
    return accumulator.moments()
