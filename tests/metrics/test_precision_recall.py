"""Precision and recall against brute force and torch-fidelity; what collapsed and scattered generators get."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics import exact_balls
from ard.evaluation.metrics import precision_recall as module
from ard.evaluation.metrics.precision_recall import Distances, PrecisionRecall, precision_recall

Normal = Callable[..., Tensor]
BOTH = pytest.mark.parametrize("distances", list(Distances))


def brute_force(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    def covered(points: np.ndarray, by: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(by - center, axis=1))[neighbours] for center in by]
        inside = [
            any(np.linalg.norm(point - center) <= radius for center, radius in zip(by, radii, strict=True))
            for point in points
        ]
        return float(np.mean(inside))

    return covered(generated.numpy(), real.numpy()), covered(real.numpy(), generated.numpy())


def in_numpys_float16(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """The formulas of ADM's script with numpy's float16, one pair at a time."""

    def squared(u: np.ndarray, v: np.ndarray) -> np.float16:
        u_squared, v_squared = (np.float16(np.sum(np.square(one), dtype=np.float32)) for one in (u, v))
        product = np.float16(np.dot(u.astype(np.float32), v.astype(np.float32)))
        return max(np.float16(0), u_squared - np.float16(2) * product + v_squared)

    def covered(points: np.ndarray, by: np.ndarray) -> float:
        radii = [sorted(squared(center, other) for other in by)[neighbours] for center in by]
        inside = [any(squared(p, center) <= radius for center, radius in zip(by, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    real, generated = (features.numpy().astype(np.float16) for features in (real, generated))
    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("rows", "others"), [(12, 12), (60, 60), (60, 25), (25, 60)])
def test_precision_and_recall_equal_brute_force(normal: Normal, rows: int, others: int, neighbours: int) -> None:
    real, generated = normal(rows, 3), 0.7 * normal(others, 3, seed=1) + 1
    wanted = brute_force(real, generated, neighbours)
    assert precision_recall(real, generated, neighbours=neighbours) == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted[0] < 1
    assert 0 < wanted[1] < 1


@pytest.mark.parametrize(("rows", "others", "width"), [(60, 60, 3), (120, 70, 16), (70, 120, 16)])
def test_precision_and_recall_equal_torch_fidelitys(
    normal: Normal, torch_fidelity: ModuleType, rows: int, others: int, width: int
) -> None:
    real, generated = normal(rows, width), 0.8 * normal(others, width, seed=1) + 0.4
    wanted = torch_fidelity.metric_prc.prc_features_to_metric(generated, real, verbose=False)
    assert precision_recall(real, generated) == pytest.approx((wanted["precision"], wanted["recall"]), abs=1e-7)
    assert 0 < wanted["recall"] < wanted["precision"] < 1


def test_three_neighbours_are_the_default(normal: Normal) -> None:
    real, generated = normal(60, 3), 1.5 * normal(60, 3, seed=1) + 0.5
    assert precision_recall(real, generated) == precision_recall(real, generated, neighbours=3)
    assert precision_recall(real, generated) != precision_recall(real, generated, neighbours=5)


@BOTH
def test_a_collapsed_generator_has_high_precision_and_low_recall(normal: Normal, distances: Distances) -> None:
    real = normal(200, 4)
    collapsed = real[:1] + 0.01 * normal(200, 4, seed=1)
    precision, recall = precision_recall(real, collapsed, distances=distances)
    assert precision > 0.95
    assert recall < 0.05


@pytest.mark.parametrize("offset", [0, 100])
def test_a_generator_that_repeats_one_real_image_recalls_that_one_only(normal: Normal, offset: float) -> None:
    real = normal(80, 16).float() + offset
    precision, recall = precision_recall(real, real[:1].repeat(80, 1))
    assert precision == 1
    assert recall == pytest.approx(1 / 80)


@BOTH
def test_a_generator_that_scatters_has_low_precision_and_high_recall(normal: Normal, distances: Distances) -> None:
    real = 0.1 * normal(200, 4)
    precision, recall = precision_recall(real, 2 * normal(200, 4, seed=1), distances=distances)
    assert precision < 0.05
    assert recall > 0.95


@BOTH
def test_the_real_images_themselves_have_full_precision_and_recall(normal: Normal, distances: Distances) -> None:
    assert precision_recall(normal(50, 8), normal(50, 8), distances=distances) == (1, 1)


@BOTH
def test_images_far_from_the_real_ones_have_neither(normal: Normal, distances: Distances) -> None:
    assert precision_recall(normal(50, 8), normal(50, 8, seed=1) + 50, distances=distances) == (0, 0)


@BOTH
def test_the_edge_of_a_ball_belongs_to_it(distances: Distances) -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])  # With three neighbours the ball of 0 ends at 3.
    generated = torch.tensor([[-3.0], [-3.5], [6.0], [6.5]])
    assert precision_recall(real, generated, distances=distances).precision == 0.5


@BOTH
def test_the_radii_come_from_the_full_sets(normal: Normal, distances: Distances) -> None:
    real, generated = normal(90, 3), 1.5 * normal(60, 3, seed=1)
    both = precision_recall(real, generated, distances=distances)
    assert both != precision_recall(real[:60], generated, distances=distances)
    assert precision_recall(generated, real, distances=distances) == (both.recall, both.precision)


def test_precision_and_recall_do_not_depend_on_the_origin(normal: Normal) -> None:
    real = normal(100, 8).mul(64).round().div(64).float()  # Exact in float32, also far away from zero.
    generated = normal(100, 8, seed=1).mul(64).round().div(64).float() + 0.5
    far = precision_recall(real + 1024, generated + 1024)
    assert far == precision_recall(real, generated)


@BOTH
@pytest.mark.parametrize("side", [2, 7, 60, 1000])
def test_the_size_of_the_tiles_does_not_matter(
    normal: Normal, monkeypatch: pytest.MonkeyPatch, distances: Distances, side: int
) -> None:
    real, generated = normal(60, 5), 0.8 * normal(45, 5, seed=1) + 0.5
    whole = precision_recall(real, generated, distances=distances)
    monkeypatch.setattr(exact_balls, "_SIDE", side)
    monkeypatch.setattr(module, "_ADM_SIDE", side)
    assert precision_recall(real, generated, distances=distances) == whole


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_half_precision_equals_numpys_float16(normal: Normal, offset: float, neighbours: int) -> None:
    real, generated = normal(40, 6) + offset, 0.7 * normal(30, 6, seed=1) + offset + 0.7
    result = precision_recall(real, generated, neighbours=neighbours, distances=Distances.FP16)
    assert result == pytest.approx(in_numpys_float16(real, generated, neighbours), abs=1e-12)


def test_half_precision_equals_exact_distances_of_small_whole_numbers(normal: Normal) -> None:
    real, generated = normal(80, 6).mul(3).round(), normal(80, 6, seed=1).mul(3).round() + 2
    exact, half = (precision_recall(real, generated, distances=distances) for distances in Distances)
    assert 0 < exact.recall < 1
    assert half == exact


def test_half_precision_lets_nearly_tied_samples_in() -> None:
    """At squared distances around 16², float16 has steps of an eighth, so that 16.001 lies on the edge of 16."""
    real = torch.tensor([[0.0], [16.0], [100.0]])
    generated = torch.tensor([[-16.001], [-40.0]])
    shares = [precision_recall(real, generated, neighbours=1, distances=one).precision for one in Distances]
    assert shares == [0, 0.5]


def test_squares_beyond_half_precision_are_computed_in_single_precision(normal: Normal) -> None:
    real, generated = 300 * normal(60, 4), 240 * normal(60, 4, seed=1)
    assert float(real.square().sum(dim=1).max()) > torch.finfo(torch.float16).max
    exact, half = (precision_recall(real, generated, distances=distances) for distances in Distances)
    assert half == pytest.approx(exact, abs=1e-12)


@BOTH
def test_a_set_without_enough_neighbours_is_refused(normal: Normal, distances: Distances) -> None:
    with pytest.raises(InputError, match="number of generated samples is 3; at least 4"):
        precision_recall(normal(9, 2), normal(3, 2), distances=distances)
    with pytest.raises(InputError, match="number of real samples is 3; at least 4"):
        precision_recall(normal(3, 2), normal(9, 2), distances=distances)
    with pytest.raises(InputError, match="number of neighbours is 0; at least 1"):
        precision_recall(normal(9, 2), normal(9, 2), neighbours=0, distances=distances)
    assert precision_recall(normal(4, 2), normal(4, 2), distances=distances) == PrecisionRecall(1, 1)


@BOTH
def test_features_that_are_not_finite_are_refused(normal: Normal, distances: Distances) -> None:
    broken = normal(9, 2).index_fill(0, torch.tensor([4]), float("nan"))
    with pytest.raises(InputError, match="features of the generated samples are not all finite"):
        precision_recall(normal(9, 2), broken, distances=distances)
    with pytest.raises(InputError, match="features of the real samples are not all finite"):
        precision_recall(broken, normal(9, 2), distances=distances)
