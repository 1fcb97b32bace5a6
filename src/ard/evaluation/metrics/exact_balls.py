"""Nearest-neighbour balls, decided as direct differences in float64 decide, but at the speed of a matrix product.

A product gives every squared distance with a bound of its error. Only where that leaves a comparison open are the
differences of the pair computed, so that each answer is the one that all differences would give. Features have few such
pairs: one core needs minutes for 10,000 and 50,000 samples of 2,048 features. Samples that lie closer together than the
bound, such as exact copies, are all compared by their differences; where every sample is such a one, it takes hours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ard.core.types import Features, OtherFeatures

_SIDE = 2_048  # Rows and columns of a tile of distances: 32 MiB in float64.
_PAIRS = 512  # Pairs whose differences are computed together.


def exact_coverage(
    first: Features, second: OtherFeatures, *, neighbours: int
) -> tuple[Bool[Tensor, " sample"], Bool[Tensor, " other"]]:
    """Which samples of each set lie in a ball of the other; a ball ends at the k-th neighbour in its own set.

    Each set needs more than k samples, all of them finite. Memory is bounded by tiles.
    """
    first_radii, second_radii = _radii(first, neighbours), _radii(second, neighbours)
    covered = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    others_covered = torch.zeros(len(second), dtype=torch.bool, device=second.device)
    centre = (first.mean(dim=0).double() + second.mean(dim=0).double()) / 2
    for rows in _spans(first):
        block = _block(first[rows], centre)
        for columns in _spans(second):
            tile = _tile(block, _block(second[columns], centre))
            others_covered[columns][_pairs_within(tile, first_radii[rows, None])[1]] = True
            covered[rows][_pairs_within(tile, second_radii[None, columns])[0]] = True
    return covered, others_covered


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Samples made ready for a product."""

    samples: Features
    """As they were given: the differences are those of these."""
    deviations: Features
    """From the centre, which is near: a product loses digits far from the origin."""
    squares: Float[Tensor, " sample"]
    """The squared lengths of the deviations. NaN where they might overflow, which leaves all comparisons open."""
    errors: Float[Tensor, " sample"]
    """The share of each sample in the error of a squared distance."""


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """All pairs of two blocks."""

    first: _Block
    second: _Block
    lower: Float[Tensor, "row column"]
    """No more than the squared distances."""

    def upper(self, rows: Int[Tensor, "*pairs"], columns: Int[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
        """No less than the squared distances of some pairs."""
        return self.lower[rows, columns] + 2 * (self.first.errors[rows] + self.second.errors[columns])

    def distances(self, rows: Int[Tensor, " pair"], columns: Int[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """The distances of some pairs from their differences, which are the definition."""
        x, y = self.first.samples, self.second.samples
        if len(rows) > self.lower.numel() // 4:  # Picking so many pairs takes longer than computing all.
            return _differences(x, y)[rows, columns]
        some = zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True)
        return torch.cat([_differences(x[i, None], y[j, None]).flatten() for i, j in some])

    def transposed(self) -> "_Tile":
        """The same pairs, seen from the other block."""
        return _Tile(first=self.second, second=self.first, lower=self.lower.T.contiguous())


def _spans(features: Features) -> list[slice]:
    return [slice(start, start + _SIDE) for start in range(0, len(features), _SIDE)]


def _block(samples: Features, centre: Float[Tensor, " feature"]) -> _Block:
    """The errors are bounds, four times the sum of what D features can round off.

    With eps twice the unit of rounding, a product of D terms is off by D eps / 2 times the product of the absolute
    values (Higham, Accuracy and Stability of Numerical Algorithms, 2002, Section 3.1), which |u|² + |v|² bounds. It
    enters twice, each square once and the differences to compare with twice. The 8 stands for the few other operations.
    """
    deviations, limits = samples - centre, torch.finfo(torch.float64)  # The centre is in float64, and so is this.
    squares = torch.linalg.vector_norm(deviations, dim=1).square()
    squares = squares.where(squares < limits.max / 8, torch.nan)
    errors = 4 * (samples.shape[1] + 8) * (limits.eps * squares + limits.tiny)  # Tiny: what underflow takes away.
    return _Block(samples=samples, deviations=deviations, squares=squares, errors=errors)


def _tile(first: _Block, second: _Block) -> _Tile:
    """|u|² + |v|² - 2 u·v, less the error."""
    lower = (first.squares - first.errors)[:, None] + (second.squares - second.errors)
    return _Tile(first=first, second=second, lower=lower.addmm_(first.deviations, second.deviations.T, alpha=-2))


def _differences(x: Float[Tensor, "*batch row feature"], y: Float[Tensor, "*batch column feature"]) -> Tensor:
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _pairs_within(
    tile: _Tile, radii: Float[Tensor, "#row #column"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows and columns of the pairs that are no farther apart than the radii of the rows or of the columns."""
    rows, columns = _pairs_not_beyond(tile, radii.square())
    reach = radii.expand_as(tile.lower)[rows, columns]
    inside = tile.upper(rows, columns) <= reach.square()
    unsure = ~inside
    inside[unsure] = tile.distances(rows[unsure], columns[unsure]) <= reach[unsure]
    return rows[inside], columns[inside]


def _pairs_not_beyond(
    tile: _Tile, squares: Float[Tensor, "#row #column"]
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """All pairs but those whose squared distance is larger for sure; NaN is not."""
    rows, columns = (tile.lower > squares).logical_not_().nonzero(as_tuple=True)
    return rows, columns


def _radii(features: Features, neighbours: int) -> Float[Tensor, " sample"]:
    """The distance of each sample to its k-th neighbour: the (k + 1)-th smallest, because the first is itself."""
    nearest = features.new_full((len(features), neighbours + 1), torch.inf, dtype=torch.float64)
    for rows, columns, tile in _tiles_of_one_set(features):
        nearest[rows] = _merged(nearest[rows], tile)
        if columns != rows:
            nearest[columns] = _merged(nearest[columns], tile.transposed())
    return nearest.amax(dim=1)


def _tiles_of_one_set(features: Features) -> Iterator[tuple[slice, slice, _Tile]]:
    """Each pair of blocks once, because a distance is the same in both directions."""
    centre, spans = features.mean(dim=0).double(), _spans(features)
    for place, rows in enumerate(spans):
        block = _block(features[rows], centre)
        for columns in spans[: place + 1]:
            yield rows, columns, _tile(block, _block(features[columns], centre))


def _merged(nearest: Float[Tensor, "row kept"], tile: _Tile) -> Float[Tensor, "row kept"]:
    """The smallest distances of each row so far and in the tile."""
    kept = nearest.shape[1]
    limits = torch.minimum(nearest.amax(dim=1).square(), _reach(tile, kept))
    rows, columns = _pairs_not_beyond(tile, limits[:, None])
    counts = rows.bincount(minlength=len(nearest))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(dim=0) - counts)[rows]
    found = nearest.new_full((len(nearest), int(counts.max())), torch.inf)
    found[rows, places] = tile.distances(rows, columns)
    return torch.cat([nearest, found], dim=1).topk(kept, largest=False).values


def _reach(tile: _Tile, count: int) -> Float[Tensor, " row"]:
    """A squared distance within which each row has `count` samples of the tile; infinite where the tile has fewer."""
    rows, columns = tile.lower.shape
    if columns < count:
        return tile.lower.new_full((rows,), torch.inf)
    nearest = tile.lower.topk(count, largest=False).indices
    return tile.upper(torch.arange(rows, device=nearest.device)[:, None].expand_as(nearest), nearest).amax(dim=1)
