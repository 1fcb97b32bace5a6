"""Fréchet distance and precision and recall, against closed forms, independent formulas and brute force."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.evaluation.metrics import frechet_distance, precision_recall


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_sample(mean: Tensor, root: Tensor, *, rows: int = 64, seed: int = 0) -> Tensor:
    """Features whose sample mean is `mean` and whose sample covariance is root @ root.T, up to rounding."""
    raw = normal(rows, len(mean), seed=seed)
    orthonormal = torch.linalg.qr(raw - raw.mean(dim=0)).Q  # Columns stay free of a mean.
    return mean + orthonormal * (rows - 1) ** 0.5 @ root.T


def independent_frechet(first: Tensor, second: Tensor) -> float:
    """In numpy, with the symmetric form of the trace: tr sqrt(A^(1/2) B A^(1/2))."""
    a, b = (np.cov(features.numpy(), rowvar=False) for features in (first.double(), second.double()))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    gap = first.double().mean(dim=0) - second.double().mean(dim=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * trace)


def test_the_distance_of_two_known_gaussians_with_commuting_covariances() -> None:
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    mean_1, mean_2 = normal(4, seed=4), normal(4, seed=5)
    std_1, std_2 = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([2.0, 0.5, 3, 1]).double()
    first = exact_sample(mean_1, rotation @ std_1.diag(), seed=1)
    second = exact_sample(mean_2, rotation @ std_2.diag(), seed=2, rows=100)
    wanted = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-9)


def test_the_distance_in_one_dimension() -> None:
    first, second = exact_sample(torch.zeros(1).double(), torch.eye(1).double()), torch.tensor([[1.0], [3.0], [5.0]])
    assert frechet_distance(first, second) == pytest.approx(3**2 + (2 - 1) ** 2)


@pytest.mark.parametrize(("rows", "width"), [(40, 3), (200, 16), (300, 64)])
def test_the_distance_equals_an_independent_formula(rows: int, width: int) -> None:
    first = normal(rows, width) @ normal(width, width, seed=1)
    second = normal(rows + 17, width, seed=2) @ normal(width, width, seed=3) + 0.3
    assert frechet_distance(first, second) == pytest.approx(independent_frechet(first, second), rel=1e-6)


def test_covariances_of_low_rank_have_a_distance() -> None:
    first, second = normal(10, 32), normal(12, 32, seed=1) + 0.5
    distance = frechet_distance(first, second)
    assert distance == pytest.approx(independent_frechet(first, second), rel=1e-4)


def test_a_constant_feature_set_has_the_distance_to_a_point() -> None:
    spread, point = exact_sample(torch.zeros(3).double(), torch.eye(3).double()), torch.ones(5, 3)
    assert frechet_distance(spread, point) == pytest.approx(3 + 3, rel=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(300, 8), (300, 64), (20, 64)])
def test_the_distance_of_a_set_to_itself_is_zero(rows: int, width: int) -> None:
    features = normal(rows, width)
    assert abs(frechet_distance(features, features)) < 1e-5 * width


def test_the_distance_is_symmetric_and_does_not_depend_on_the_order_of_the_rows() -> None:
    first, second = normal(50, 6), 2 * normal(70, 6, seed=1) + 1
    distance = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(first.flip(0), second) == pytest.approx(distance, rel=1e-9)


def test_single_precision_features_are_computed_in_double() -> None:
    first, second = normal(80, 16).float() + 100, normal(80, 16, seed=1).float() + 100
    assert frechet_distance(first, second) == pytest.approx(independent_frechet(first, second), rel=1e-6)


def test_the_distance_grows_with_the_gap() -> None:
    features = normal(100, 4)
    distances = [frechet_distance(features, features + gap) for gap in (0.0, 0.5, 1.0)]
    assert distances == pytest.approx([0, 4 * 0.25, 4], abs=1e-6)


def brute_force(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    def covered(points: np.ndarray, by: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(by - center, axis=1))[neighbours] for center in by]
        inside = [
            any(np.linalg.norm(point - center) <= radius for center, radius in zip(by, radii, strict=True))
            for point in points
        ]
        return float(np.mean(inside))

    return covered(generated.numpy(), real.numpy()), covered(real.numpy(), generated.numpy())


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("rows", [12, 60])
def test_precision_and_recall_equal_brute_force(rows: int, neighbours: int) -> None:
    real, generated = normal(rows, 3), 0.7 * normal(rows, 3, seed=1) + 1
    wanted = brute_force(real, generated, neighbours)
    assert precision_recall(real, generated, neighbours=neighbours) == pytest.approx(wanted, abs=1e-6)
    assert 0 < wanted[0] < 1
    assert 0 < wanted[1] < 1


def test_three_neighbours_are_the_default() -> None:
    real, generated = normal(60, 3), 1.5 * normal(60, 3, seed=1) + 0.5
    assert precision_recall(real, generated) == precision_recall(real, generated, neighbours=3)
    assert precision_recall(real, generated) != precision_recall(real, generated, neighbours=5)


def test_a_collapsed_generator_has_high_precision_and_low_recall() -> None:
    real = normal(200, 4)
    collapsed = real[:1] + 0.01 * normal(200, 4, seed=1)
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.95
    assert recall < 0.05


@pytest.mark.parametrize("offset", [0, 100])
def test_a_generator_that_repeats_one_real_image_recalls_that_one_only(offset: float) -> None:
    real = normal(80, 16).float() + offset
    precision, recall = precision_recall(real, real[:1].repeat(80, 1))
    assert precision == 1
    assert recall == pytest.approx(1 / 80)


def test_a_generator_that_scatters_has_low_precision_and_high_recall() -> None:
    real = 0.1 * normal(200, 4)
    precision, recall = precision_recall(real, 2 * normal(200, 4, seed=1))
    assert precision < 0.05
    assert recall > 0.95


def test_the_real_images_themselves_have_full_precision_and_recall() -> None:
    assert precision_recall(normal(50, 8), normal(50, 8)) == (1, 1)


def test_images_far_from_the_real_ones_have_neither() -> None:
    assert precision_recall(normal(50, 8), normal(50, 8, seed=1) + 100) == (0, 0)


def test_sets_of_different_size_are_cut_to_the_first_rows() -> None:
    real, generated = normal(90, 3), 1.5 * normal(60, 3, seed=1)
    cut = precision_recall(real[:60], generated)
    assert precision_recall(real, generated) == cut
    assert precision_recall(generated, real) == (cut.recall, cut.precision)


def test_precision_and_recall_do_not_depend_on_the_origin() -> None:
    real = normal(100, 8).mul(64).round().div(64).float()  # Exact in float32, also far away from zero.
    generated = normal(100, 8, seed=1).mul(64).round().div(64).float() + 0.5
    far = precision_recall(real + 1024, generated + 1024)
    assert far == precision_recall(real, generated)
