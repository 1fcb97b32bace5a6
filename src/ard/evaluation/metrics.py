"""Metrics as pure functions of features: Fréchet distance, and precision and recall. The names of the features come
with the numbers: this is no FID unless the features are Inception's under the ADM protocol.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ard.types import Features, OtherFeatures


class PrecisionRecall(NamedTuple):
    """Fidelity and coverage, both in [0, 1]."""

    precision: float
    recall: float


def frechet_distance(first: Features, second: OtherFeatures) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al., 2017), in float64."""
    (mean_1, cov_1), (mean_2, cov_2) = (_moments(features) for features in (first, second))
    # The product of two covariances has real eigenvalues >= 0; rounding may leave small imaginary or negative parts.
    root_trace = torch.linalg.eigvals(cov_1 @ cov_2).real.clamp(min=0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root_trace
    return max(0.0, float(distance))


def precision_recall(real: Features, generated: OtherFeatures, *, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., 2019) on sets of the same size: the first rows of each."""
    count = min(len(real), len(generated))
    real, generated = real[:count], generated[:count]
    precision = _covered(generated, by=real, neighbours=neighbours).float().mean()
    recall = _covered(real, by=generated, neighbours=neighbours).float().mean()
    return PrecisionRecall(float(precision), float(recall))


def _moments(features: Features) -> tuple[Float[Tensor, " feature"], Float[Tensor, "feature feature"]]:
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).view(features.shape[1], -1)


def _covered(points: Features, *, by: OtherFeatures, neighbours: int) -> Bool[Tensor, " sample"]:
    """Which points lie in the ball of a point of `by` that reaches to its own k-th neighbour."""
    radius = _distances(by, by).kthvalue(neighbours + 1, dim=1).values  # The nearest is the point itself.
    return (_distances(points, by) <= radius).any(dim=1)


def _distances(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """Euclidean, from differences: the faster way through a matrix product loses digits far from the origin."""
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
