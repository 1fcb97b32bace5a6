"""CMMD against a double loop, the published formula and a closed form."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics import clip_mmd
from ard.evaluation.metrics.clip_mmd import cmmd

Normal = Callable[..., Tensor]


def by_double_loop(first: Tensor, second: Tensor, sigma: float) -> float:
    """1000 times the biased MMD² of unit vectors with the Gaussian kernel, pair by pair."""
    x, y = (features / features.norm(dim=1, keepdim=True) for features in (first, second))

    def mean_kernel(one: Tensor, other: Tensor) -> float:
        values = [math.exp(-float((a - b) @ (a - b)) / (2 * sigma**2)) for a in one for b in other]
        return sum(values) / len(values)

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


@pytest.mark.parametrize("sigma", [0.5, 10.0])
@pytest.mark.parametrize(("rows", "others"), [(1, 1), (7, 7), (9, 4)])
def test_cmmd_equals_the_double_loop(normal: Normal, rows: int, others: int, sigma: float) -> None:
    first, second = normal(rows, 5), normal(others, 5, seed=1) + 0.5
    wanted = by_double_loop(first, second, sigma)
    assert cmmd(first, second, sigma=sigma) == pytest.approx(wanted, rel=1e-9, abs=1e-10)


def test_cmmd_of_unit_vectors_equals_the_published_formula(normal: Normal) -> None:
    first, second = (features / features.norm(dim=1, keepdim=True) for features in (normal(30, 16), normal(20, 16) + 1))
    x, y = first.numpy(), second.numpy()

    def mean_kernel(one: np.ndarray, other: np.ndarray) -> float:
        squares = np.diag(one @ one.T)[:, None] + np.diag(other @ other.T)[None] - 2 * one @ other.T
        return float(np.exp(-squares / (2 * 10**2)).mean())

    wanted = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(first, second) == pytest.approx(wanted, rel=1e-9)


def test_two_orthogonal_points_have_their_closed_form() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert cmmd(first, second) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-9)
    assert cmmd(first, second, sigma=1.0, scale=1.0) == pytest.approx(2 - 2 * math.exp(-1), rel=1e-12)


def test_the_length_of_an_embedding_does_not_matter(normal: Normal) -> None:
    first, second = normal(12, 6), normal(15, 6, seed=1) + 1
    lengths = torch.linspace(0.1, 30, 12).double()[:, None]
    assert cmmd(first * lengths, 7 * second) == pytest.approx(cmmd(first, second), rel=1e-9)


def test_a_set_has_no_distance_to_itself(normal: Normal) -> None:
    assert cmmd(normal(40, 6), normal(40, 6).flip(0)) == pytest.approx(0, abs=1e-9)


def test_two_sets_of_one_law_have_a_distance_above_zero_that_falls_with_their_size(normal: Normal) -> None:
    small, large = (cmmd(normal(count, 6), normal(count, 6, seed=1)) for count in (50, 800))
    assert small > 4 * large > 0


@pytest.mark.parametrize("side", [1, 7, 30, 1000])
def test_the_size_of_the_tiles_does_not_matter(normal: Normal, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    first, second = normal(60, 6), normal(45, 6, seed=1) + 0.5
    whole = cmmd(first, second)
    monkeypatch.setattr(clip_mmd, "_SIDE", side)
    assert cmmd(first, second) == pytest.approx(whole, rel=1e-10)


def test_single_precision_embeddings_are_computed_in_double(normal: Normal) -> None:
    first, second = normal(40, 6).float(), normal(40, 6, seed=1).float() + 1
    assert cmmd(first, second) == cmmd(first.double(), second.double())


def test_empty_sets_and_a_width_of_zero_are_refused(normal: Normal) -> None:
    with pytest.raises(InputError, match="number of second samples is 0; at least 1"):
        cmmd(normal(4, 3), normal(0, 3))
    with pytest.raises(InputError, match="sigma is 0"):
        cmmd(normal(4, 3), normal(4, 3), sigma=0.0)
