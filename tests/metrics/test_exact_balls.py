"""Balls decided through a matrix product answer as a loop over all differences does, also where the product cannot."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.evaluation.metrics import exact_balls
from ard.evaluation.metrics.exact_balls import exact_coverage

Normal = Callable[..., Tensor]
Pair = tuple[Tensor, Tensor]


def by_double_loop(first: Tensor, second: Tensor, neighbours: int) -> tuple[list[bool], list[bool]]:
    """Each pair from its differences, in float64 and in numpy."""
    x, y = first.double().numpy(), second.double().numpy()

    def distances(point: np.ndarray, others: np.ndarray) -> list[float]:
        with np.errstate(over="ignore", under="ignore"):
            return [np.sqrt(np.square(point - other).sum()) for other in others]

    def covered(points: np.ndarray, by: np.ndarray) -> list[bool]:
        radii = [sorted(distances(center, by))[neighbours] for center in by]
        return [any(d <= radius for d, radius in zip(distances(x, by), radii, strict=True)) for x in points]

    return covered(x, y), covered(y, x)


def with_copies(normal: Normal) -> Pair:
    """Samples that stand in both sets, and samples that stand in one set many times."""
    first, second = normal(30, 6), normal(26, 6, seed=1)
    return torch.cat([first, first[:9], first[:1].repeat(5, 1)]), torch.cat([second, first[5:15], second[:4]])


def with_two_distant_clusters(normal: Normal) -> Pair:
    """No centre is near: the bound of the product is larger than any distance within a cluster."""
    first, second = normal(40, 6), 1.2 * normal(34, 6, seed=1) + 0.5
    first[::2] += 1e9
    second[1::2] += 1e9
    return first, second


def of_all_scales(normal: Normal) -> Pair:
    """Lengths between 1e-150 and 1e150, whose squares fill the range of float64."""
    powers = torch.linspace(-150, 150, 36).double()[:, None]
    return normal(36, 6) * 10**powers, normal(36, 6, seed=1) * 10 ** powers.flip(0)


SETS: dict[str, Callable[[Normal], Pair]] = {
    "normal": lambda normal: (normal(40, 6), 1.2 * normal(34, 6, seed=1) + 0.5),
    "more features than samples": lambda normal: (normal(20, 300), 1.1 * normal(24, 300, seed=1)),
    "single precision": lambda normal: (normal(40, 6).float() + 100, 1.2 * normal(34, 6, seed=1).float() + 100),
    "on a line": lambda normal: (normal(40, 1), normal(34, 1, seed=1) + 0.5),
    "the same": lambda normal: (normal(40, 6), normal(40, 6)),
    "copies": with_copies,
    "all copies of one": lambda normal: (normal(1, 6).repeat(30, 1), normal(1, 6).repeat(30, 1)),
    "whole numbers, full of ties": lambda normal: (normal(50, 3).round(), normal(40, 3, seed=1).mul(2).round()),
    "whole numbers far from the origin": lambda normal: (normal(50, 3).round() + 2**40, normal(40, 3).round() + 2**40),
    "tiny distances far from the origin": lambda normal: (1e-6 * normal(40, 6) + 1e6, 1.2e-6 * normal(34, 6) + 1e6),
    "a collapsed second set": lambda normal: (normal(40, 6), normal(40, 6)[:1] + 1e-9 * normal(34, 6, seed=1)),
    "two distant clusters": with_two_distant_clusters,
    "of all scales": of_all_scales,
    "squares overflow": lambda normal: (1e160 * normal(40, 6), 1e153 * normal(34, 6, seed=1)),
    "squares overflow at the far samples": lambda normal: (
        1e153 * normal(40, 6),
        2e153 * normal(34, 6, seed=1) + 5e153,
    ),
    "squares underflow": lambda normal: (1e-170 * normal(40, 6), 1e-160 * normal(34, 6, seed=1)),
    "squares are subnormal": lambda normal: (1e-158 * normal(40, 6), 1.2e-158 * normal(34, 6, seed=1)),
}


@pytest.mark.parametrize(("side", "neighbours"), [(2_048, 3), (16, 1)])
@pytest.mark.parametrize("name", SETS)
def test_balls_equal_a_double_loop_of_differences(
    normal: Normal, monkeypatch: pytest.MonkeyPatch, name: str, side: int, neighbours: int
) -> None:
    monkeypatch.setattr(exact_balls, "_SIDE", side)
    first, second = SETS[name](normal)
    covered, others_covered = exact_coverage(first, second, neighbours=neighbours)
    assert (covered.tolist(), others_covered.tolist()) == by_double_loop(first, second, neighbours)


def test_a_sample_one_rounding_beyond_the_edge_is_outside() -> None:
    first = torch.tensor([[0.0], [1.0], [2.0], [3.0]]).double()  # With three neighbours the ball of 0 ends at 3.
    edge = [-3.0, math.nextafter(-3, -4), math.nextafter(6, 5), 6.0, math.nextafter(6, 7)]
    covered = exact_coverage(first, torch.tensor(edge, dtype=torch.float64)[:, None], neighbours=3)[1]
    assert covered.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("name", SETS)
def test_the_bounds_of_the_product_hold_the_distances(normal: Normal, name: str) -> None:
    first, second = SETS[name](normal)
    tile = exact_balls._tile(*(exact_balls._block(features, first[0].double()) for features in (first, second)))
    rows, columns = (places.flatten() for places in torch.meshgrid(*map(torch.arange, tile.lower.shape), indexing="ij"))
    squares = exact_balls._differences(first, second).flatten().square()
    assert not (tile.lower.flatten() > squares).any()
    assert not (tile.upper(rows, columns) < squares).any()


def test_the_distances_of_some_pairs_are_those_of_all(normal: Normal) -> None:
    first, second = normal(40, 50), normal(30, 50, seed=1).float()
    tile = exact_balls._tile(*(exact_balls._block(features, first[0]) for features in (first, second)))
    everything = torch.ones_like(tile.lower, dtype=torch.bool).nonzero(as_tuple=True)
    few = tuple(places[::7] for places in everything)
    assert torch.equal(tile.distances(*few), tile.distances(*everything)[::7])
    assert len(tile.distances(*(places[:0] for places in everything))) == 0


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were decided by their differences, one number for each time that some were."""
    counts: list[int] = []
    distances = exact_balls._Tile.distances

    def counted(tile: exact_balls._Tile, rows: Tensor, columns: Tensor) -> Tensor:
        counts.append(len(rows))
        return distances(tile, rows, columns)

    monkeypatch.setattr(exact_balls._Tile, "distances", counted)
    return counts


def test_differences_decide_the_nearest_neighbours_only(normal: Normal, pairs: list[int]) -> None:
    exact_coverage(normal(400, 16), 1.1 * normal(300, 16, seed=1), neighbours=3)
    assert sum(pairs) == (400 + 300) * (3 + 1)


def test_differences_decide_all_pairs_of_which_the_product_knows_nothing(normal: Normal, pairs: list[int]) -> None:
    first, second = with_two_distant_clusters(normal)
    exact_coverage(first, second, neighbours=3)
    assert sum(pairs) >= (len(first) ** 2 + len(second) ** 2 + 2 * len(first) * len(second)) / 2
