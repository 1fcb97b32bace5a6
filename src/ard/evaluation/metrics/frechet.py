"""The Fréchet distance of two Gaussians (Heusel et al., 2017), from the moments of two sets of features."""

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics.moments import Moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 sqrt(C1 C2)), in float64 (Equation 6 of Heusel et al., 2017).

    The trace of the root is the sum of the roots of the eigenvalues of C1 C2, so no matrix root is needed and singular
    covariances need no offset. This is the FID where the features are Inception's pool3 under the ADM protocol.
    InputError where the moments are of features of different width or not finite.
    """
    _require_comparable(first, second)
    gap = (first.mean.double() - second.mean.double()).square().sum()
    spread = first.covariance.double().trace() + second.covariance.double().trace()
    return max(0.0, float(gap + spread - 2 * _trace_of_root(first, second)))


def _trace_of_root(first: Moments, second: Moments) -> Float[Tensor, ""]:
    """Tr sqrt(C1 C2). With C1 = F Fᵀ, the symmetric Fᵀ C2 F has the eigenvalues of C1 C2 and is quicker to solve.

    The covariance of n samples has rank n - 1 at most. The eigenvalues beyond that are zero but for rounding, whose
    root would count: with 500 samples of 2,048 features, it moves the distance in its eighth digit. Of two sets, the
    larger is split, and where the number of samples is unknown, it is taken for large.
    """
    counts = [moments.count for moments in (first, second) if moments.count]
    larger, smaller = sorted((first, second), key=lambda moments: moments.count or torch.inf, reverse=True)
    order = larger.covariance.diagonal().argsort(descending=True)
    factor = _factor(larger.covariance.double()[order][:, order])
    eigenvalues = torch.linalg.eigvalsh(factor.T @ smaller.covariance.double()[order][:, order] @ factor)
    rank = min([len(eigenvalues), *(count - 1 for count in counts)])
    return eigenvalues.topk(rank).values.clamp(min=0).sqrt().sum()


def _factor(covariance: Float[Tensor, "feature feature"]) -> Float[Tensor, "feature feature"]:
    """F with F Fᵀ = C: Cholesky's, or where C is singular to rounding, the eigenvectors times their roots.

    The large directions come first. A solver then keeps the digits of the small eigenvalues of Fᵀ C2 F, of which the
    root is taken; with the small ones first, a distance can lose half of its digits.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp(min=0).sqrt()).flip(1)


def _require_comparable(first: Moments, second: Moments) -> None:
    widths = len(first.mean), len(second.mean)
    if widths[0] != widths[1]:
        raise InputError(f"moments of {widths[0]} and of {widths[1]} features cannot be compared; use one network")
    for moments in (first, second):
        if not (moments.mean.isfinite().all() and moments.covariance.isfinite().all()):
            raise InputError("moments hold NaN or infinite values; make them anew from finite features")
