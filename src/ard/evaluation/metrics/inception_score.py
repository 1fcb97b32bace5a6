"""The Inception Score (Salimans et al., 2016): how sure a classifier is of each image and how its classes spread."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.errors import require_at_least


class InceptionScore(NamedTuple):
    """Over the splits: between 1 and the number of classes."""

    mean: float
    std: float


def inception_score(probabilities: Float[Tensor, "sample class"], *, split_size: int = 5000) -> InceptionScore:
    """Mean and standard deviation over splits of exp(E KL(p(y|x) || p(y))), in float64.

    As in ADM's evaluator, the splits are 5,000 images each in the order of the file, and nothing is shuffled: a file
    that is sorted by class has a low score. A last split may be smaller. Fewer images have a lower score, so that
    numbers compare at one number of images only.
    """
    require_at_least(1, {"the number of samples": len(probabilities), "split_size": split_size})
    scores = torch.stack([_score(split.double()) for split in probabilities.split(split_size)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def _score(p: Float[Tensor, "sample class"]) -> Float[Tensor, ""]:
    """exp(mean over x of sum over y of p(y|x) log(p(y|x) / p(y))); a probability of zero adds nothing."""
    marginal = p.mean(dim=0)
    return (torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(dim=1).mean().exp()
