"""The Fréchet distance against closed forms, SciPy, torch-fidelity and a formula that needs no covariance."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics.frechet import frechet_distance
from ard.evaluation.metrics.moments import Moments, moments_of

Normal = Callable[..., Tensor]


def distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(moments_of(first), moments_of(second))


def symmetric_form(first: Tensor, second: Tensor) -> float:
    """In numpy, with the symmetric form of the trace: tr sqrt(A^(1/2) B A^(1/2))."""
    a, b = (np.cov(features.numpy(), rowvar=False) for features in (first.double(), second.double()))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    gap = first.double().mean(dim=0) - second.double().mean(dim=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * trace)


def from_features(first: Tensor, second: Tensor) -> float:
    """Without covariances: tr sqrt(A B) is the sum of the singular values of X Y^T / sqrt((n - 1)(m - 1)).

    No root of a rounding error enters, so this is exact also where there are fewer samples than features.
    """
    x, y = (features - features.mean(dim=0) for features in (first, second))
    x, y = x / (len(x) - 1) ** 0.5, y / (len(y) - 1) ** 0.5
    gap = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    return float(gap + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum())


def test_the_distance_of_two_known_gaussians_with_commuting_covariances(
    normal: Normal, exact_sample: Callable[..., Tensor]
) -> None:
    rotation = torch.linalg.qr(normal(4, 4, seed=3)).Q
    mean_1, mean_2 = normal(4, seed=4), normal(4, seed=5)
    std_1, std_2 = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([2.0, 0.5, 3, 1]).double()
    first = exact_sample(mean_1, rotation @ std_1.diag(), seed=1)
    second = exact_sample(mean_2, rotation @ std_2.diag(), seed=2, rows=100)
    wanted = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    assert distance(first, second) == pytest.approx(float(wanted), rel=1e-9)


def test_the_distance_of_two_known_gaussians_from_their_moments_alone(normal: Normal) -> None:
    rotation = torch.linalg.qr(normal(64, 64)).Q
    first_variance, second_variance = torch.logspace(1, -6, 64).double(), torch.logspace(0, -7, 64).double()
    first, second = (
        Moments(count=0, mean=mean.double(), covariance=rotation * variance @ rotation.T)
        for mean, variance in ((torch.zeros(64), first_variance), (torch.ones(64), second_variance))
    )
    wanted = 64 + (first_variance.sqrt() - second_variance.sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-10)


def test_the_distance_in_one_dimension(exact_sample: Callable[..., Tensor]) -> None:
    first, second = exact_sample(torch.zeros(1).double(), torch.eye(1).double()), torch.tensor([[1.0], [3.0], [5.0]])
    assert distance(first, second) == pytest.approx(3**2 + (2 - 1) ** 2)


@pytest.mark.parametrize(("rows", "width"), [(40, 3), (200, 16), (300, 64), (64, 64), (30, 64)])
def test_the_distance_equals_torch_fidelitys(normal: Normal, torch_fidelity: ModuleType, rows: int, width: int) -> None:
    first = normal(rows, width) @ normal(width, width, seed=1)
    second = normal(rows + 17, width, seed=2) @ normal(width, width, seed=3) + 0.3
    fid = torch_fidelity.metric_fid
    statistics = [fid.fid_features_to_statistics(features) for features in (first, second)]
    wanted = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distance(first, second) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize(("rows", "width"), [(40, 3), (200, 16), (300, 64)])
def test_the_distance_equals_the_one_with_scipys_matrix_root(normal: Normal, rows: int, width: int) -> None:
    first = normal(rows, width) @ normal(width, width, seed=1)
    second = normal(rows + 17, width, seed=2) @ normal(width, width, seed=3) + 0.3
    a, b = (np.cov(features.numpy(), rowvar=False) for features in (first, second))
    gap = float((first.mean(dim=0) - second.mean(dim=0)).square().sum())
    wanted = gap + np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b).real)
    assert distance(first, second) == pytest.approx(wanted, rel=1e-9)
    assert distance(first, second) == pytest.approx(symmetric_form(first, second), rel=1e-9)


@pytest.mark.parametrize(("rows", "others"), [(10, 12), (10, 200), (200, 10), (33, 33), (2, 2)])
def test_fewer_samples_than_features_have_the_exact_distance(normal: Normal, rows: int, others: int) -> None:
    first, second = normal(rows, 64), 2 * normal(others, 64, seed=1) + 0.5
    assert distance(first, second) == pytest.approx(from_features(first, second), rel=1e-12)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize(("rows", "others"), [(120, 150), (150, 120), (25, 150), (25, 20)])
@pytest.mark.parametrize("power", [-6, -3, 3, 6])
def test_small_directions_keep_their_digits(
    normal: Normal, power: float, rows: int, others: int, *, rotated: bool
) -> None:
    """The standard deviations span `power` orders of magnitude, growing or falling with the feature's index."""
    axes = torch.linalg.qr(normal(32, 32, seed=2)).Q if rotated else torch.eye(32).double()
    deviations = torch.logspace(0, power, 32).double()
    first, second = ((normal(count, 32, seed=count) * deviations) @ axes for count in (rows, others))
    assert distance(first, second) == pytest.approx(from_features(first, second), rel=1e-10)


def test_moments_of_an_unknown_number_of_samples_lose_some_digits_only(normal: Normal) -> None:
    first, second = normal(10, 64), normal(12, 64, seed=1) + 0.5
    unknown = [
        Moments(count=0, mean=moments.mean, covariance=moments.covariance)
        for moments in (moments_of(first), moments_of(second))
    ]
    assert frechet_distance(*unknown) == pytest.approx(from_features(first, second), rel=1e-6)


def test_a_constant_feature_set_has_the_distance_to_a_point(exact_sample: Callable[..., Tensor]) -> None:
    spread, point = exact_sample(torch.zeros(3).double(), torch.eye(3).double()), torch.ones(5, 3)
    assert distance(spread, point) == pytest.approx(3 + 3, rel=1e-12)


@pytest.mark.parametrize(("rows", "width"), [(300, 8), (300, 64), (20, 64)])
def test_the_distance_of_a_set_to_itself_is_zero(normal: Normal, rows: int, width: int) -> None:
    features = normal(rows, width)
    assert 0 <= distance(features, features) < 1e-11 * width


def test_the_distance_is_symmetric_and_does_not_depend_on_the_order_of_the_rows(normal: Normal) -> None:
    first, second = normal(50, 6), 2 * normal(70, 6, seed=1) + 1
    wanted = distance(first, second)
    assert distance(second, first) == pytest.approx(wanted, rel=1e-9)
    assert distance(first.flip(0), second) == pytest.approx(wanted, rel=1e-9)


def test_single_precision_features_are_computed_in_double(normal: Normal) -> None:
    first, second = normal(80, 16).float() + 100, normal(80, 16, seed=1).float() + 100
    assert distance(first, second) == pytest.approx(symmetric_form(first, second), rel=1e-9)


def test_the_distance_grows_with_the_gap(normal: Normal) -> None:
    features = normal(100, 4)
    distances = [distance(features, features + gap) for gap in (0.0, 0.5, 1.0)]
    assert distances == pytest.approx([0, 4 * 0.25, 4], abs=1e-9)


def test_features_of_different_networks_are_refused(normal: Normal) -> None:
    with pytest.raises(InputError, match="moments of 4 and of 3 features"):
        distance(normal(9, 4), normal(9, 3))


def test_moments_that_are_not_finite_are_refused(normal: Normal) -> None:
    good = moments_of(normal(9, 2))
    bad = Moments(count=9, mean=good.mean, covariance=good.covariance * float("nan"))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(InputError, match="NaN or infinite"):
            frechet_distance(*pair)
