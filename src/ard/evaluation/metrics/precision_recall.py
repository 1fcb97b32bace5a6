"""Improved precision and recall (Kynkäänniemi et al., 2019): fidelity and coverage by nearest-neighbour balls."""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ard.errors import require_at_least
from ard.types import Features, OtherFeatures

_EXACT_SIDE = 2_048  # Rows and columns of a tile of distances: 32 MiB in float64.
_ADM_SIDE = 10_000  # ADM's own, because it decides per tile whether float16 is enough. About 1 GiB at work.


class Distances(StrEnum):
    """How distances are computed. Rounding makes ties, and a tie lets a sample into a ball: it shows in the numbers.

    On a CPU the exact ones take long: one core needs minutes for each 10,000 x 10,000 pairs of 2,048 features, and
    seconds for float16.
    """

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
    InputError where a set has no k-th neighbour.
    """
    sizes = {"the number of real samples": len(real), "the number of generated samples": len(generated)}
    require_at_least(1, {"the number of neighbours": neighbours})
    require_at_least(neighbours + 1, sizes)
    real_radii, generated_radii = (_radii(features, neighbours, distances) for features in (real, generated))
    precise = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, tile in _tiles(real, generated, distances):
        precise[columns] |= (tile <= real_radii[rows, None]).any(dim=0)
        recalled[rows] |= (tile <= generated_radii[columns]).any(dim=1)
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def _radii(features: Features, neighbours: int, distances: Distances) -> Float[Tensor, " sample"]:
    """The distance of each sample to its k-th neighbour: the (k + 1)-th smallest, because the first is itself."""
    dtype = torch.float64 if distances == Distances.EXACT else torch.float32
    nearest = torch.full((len(features), neighbours + 1), torch.inf, dtype=dtype, device=features.device)
    for rows, _, tile in _tiles(features, features, distances):
        nearest[rows] = torch.cat([nearest[rows], tile], dim=1).topk(neighbours + 1, largest=False).values
    return nearest.amax(dim=1)


def _tiles(
    first: Features, second: OtherFeatures, distances: Distances
) -> Iterator[tuple[slice, slice, Float[Tensor, "row column"]]]:
    """(rows, columns, distances between them) until every pair was there."""
    measure, side = {
        Distances.EXACT: (_exact_distances, _EXACT_SIDE),
        Distances.FP16: (_half_distances, _ADM_SIDE),
    }[distances]
    for row in range(0, len(first), side):
        for column in range(0, len(second), side):
            rows, columns = slice(row, row + side), slice(column, column + side)
            yield rows, columns, measure(first[rows], second[columns])


def _exact_distances(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """Euclidean, from differences: the faster way through a matrix product loses digits far from the origin."""
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _half_distances(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """Squared, in float16; the whole tile in float32 where a value of float16 is not finite."""
    tile = _expanded_squares(first.half(), second.half())
    return (tile if tile.isfinite().all() else _expanded_squares(first.float(), second.float())).float()


def _expanded_squares(first: Features, second: OtherFeatures) -> Float[Tensor, "sample other"]:
    """|u|² - 2 u·v + |v|², each term and sum rounded to the precision of the inputs, as TensorFlow does."""
    products = (first.float() @ second.float().T).to(first.dtype)  # Products are summed in float32, then rounded.
    u_squared, v_squared = first.square().sum(dim=1), second.square().sum(dim=1)
    return (u_squared[:, None] - 2 * products + v_squared).clamp(min=0)
