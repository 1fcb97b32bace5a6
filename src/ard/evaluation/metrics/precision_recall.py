"""Improved precision and recall (Kynkäänniemi et al., 2019): fidelity and coverage by nearest-neighbour balls."""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ard.core.errors import InputError, require_at_least
from ard.core.types import Features, OtherFeatures
from ard.evaluation.metrics.exact_balls import exact_coverage

_ADM_SIDE = 10_000  # ADM's own, because it decides per tile whether float16 is enough. About 1 GiB at work.


class Distances(StrEnum):
    """How distances are computed. Rounding makes ties, and a tie lets a sample into a ball: it shows in the numbers."""

    EXACT = "exact"  # From differences in float64, which is the definition.
    FP16 = "fp16"  # As ADM's script does: squares by a matrix product, rounded to float16. For comparison with it.


class PrecisionRecall(NamedTuple):
    """Fidelity and coverage, both in [0, 1]."""

    precision: float
    """The share of generated samples that lie in the ball of a real one."""
    recall: float
    """The share of real samples that lie in the ball of a generated one."""


def precision_recall(
    real: Features, generated: OtherFeatures, *, neighbours: int = 3, distances: Distances = Distances.EXACT
) -> PrecisionRecall:
    """Precision and recall; a ball reaches to the centre's k-th neighbour in its own set, its edge included.

    As in ADM's evaluator, k is 3, the radii come from each full set, and the sets may differ in size: 10,000 real and
    50,000 generated images there. Numbers of sets of other sizes do not compare. Memory is bounded by tiles.
    InputError where a set has no k-th neighbour or a feature is not finite.
    """
    require_at_least(1, {"the number of neighbours": neighbours})
    for name, features in {"real": real, "generated": generated}.items():
        require_at_least(neighbours + 1, {f"the number of {name} samples": len(features)})
        if not features.isfinite().all():
            raise InputError(f"the features of the {name} samples are not all finite; look for NaN in the images")
    coverage = {Distances.EXACT: exact_coverage, Distances.FP16: _adm_coverage}[distances]
    recalled, precise = coverage(real, generated, neighbours=neighbours)
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def _adm_coverage(
    first: Features, second: OtherFeatures, *, neighbours: int
) -> tuple[Bool[Tensor, " sample"], Bool[Tensor, " other"]]:
    """Which samples of each set lie in a ball of the other, by ADM's distances."""
    first_radii, second_radii = _radii(first, neighbours), _radii(second, neighbours)
    covered = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    others_covered = torch.zeros(len(second), dtype=torch.bool, device=second.device)
    for rows, columns, tile in _tiles(first, second):
        others_covered[columns] |= (tile <= first_radii[rows, None]).any(dim=0)
        covered[rows] |= (tile <= second_radii[columns]).any(dim=1)
    return covered, others_covered


def _radii(features: Features, neighbours: int) -> Float[Tensor, " sample"]:
    """The distance of each sample to its k-th neighbour: the (k + 1)-th smallest, because the first is itself."""
    nearest = torch.full((len(features), neighbours + 1), torch.inf, device=features.device)
    for rows, _, tile in _tiles(features, features):
        nearest[rows] = torch.cat([nearest[rows], tile], dim=1).topk(neighbours + 1, largest=False).values
    return nearest.amax(dim=1)


def _tiles(first: Features, second: OtherFeatures) -> Iterator[tuple[slice, slice, Float[Tensor, "row column"]]]:
    """(rows, columns, distances between them) until every pair was there."""
    for row in range(0, len(first), _ADM_SIDE):
        for column in range(0, len(second), _ADM_SIDE):
            rows, columns = slice(row, row + _ADM_SIDE), slice(column, column + _ADM_SIDE)
            yield rows, columns, _half_distances(first[rows], second[columns])


def _half_distances(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """Squared, in float16; the whole tile in float32 where a value of float16 is not finite."""
    tile = _expanded_squares(first.half(), second.half())
    return (tile if tile.isfinite().all() else _expanded_squares(first.float(), second.float())).float()


def _expanded_squares(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """|u|² - 2 u·v + |v|², each term and sum rounded to the precision of the inputs, as TensorFlow does."""
    products = (first.float() @ second.float().T).to(first.dtype)  # Products are summed in float32, then rounded.
    u_squared, v_squared = first.square().sum(dim=1), second.square().sum(dim=1)
    return (u_squared[:, None] - 2 * products + v_squared).clamp(min=0)
