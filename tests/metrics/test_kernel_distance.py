"""The kernel distance against a double loop and torch-fidelity; its subsets are addressed by the seed."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics.kernel_distance import kernel_distance

Normal = Callable[..., Tensor]


def by_double_loop(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD² with the cubic kernel, pair by pair."""

    def kernel(one: Tensor, other: Tensor) -> float:
        return (float(one @ other) / len(one) + 1) ** 3

    m = len(x)
    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / m**2


@pytest.mark.parametrize(("samples", "width"), [(2, 1), (9, 4), (15, 3)])
def test_a_subset_of_everything_equals_the_double_loop(normal: Normal, samples: int, width: int) -> None:
    x, y = normal(samples, width), 1.5 * normal(samples, width, seed=1) + 1
    result = kernel_distance(x, y, subsets=2, subset_size=samples)
    assert result == pytest.approx((by_double_loop(x, y), 0), rel=1e-10, abs=1e-10)


def test_two_points_on_a_line_have_their_closed_form() -> None:
    """x = ±1 and y = ±2: within, the kernels are (1 - 1)³ and (1 - 4)³; between, (1 ± 2)³ average 13."""
    x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [-2.0]])
    assert kernel_distance(x, y, subsets=1, subset_size=2).mean == pytest.approx(0 - 27 - 2 * 13)


def test_the_distance_equals_torch_fidelitys_on_the_same_subsets(
    normal: Normal, torch_fidelity: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(90, 12), 1.2 * normal(70, 12, seed=1) + 0.3
    result = kernel_distance(x, y, subsets=8, subset_size=30, seed=5)

    generators = [np.random.default_rng([5, subset]) for subset in range(8)]
    draws = iter([generator for generator in generators for _ in range(2)])  # First a subset of x, then one of y.

    def choice(count: int, size: int, *, replace: bool) -> Any:
        return next(draws).choice(count, size, replace=replace)

    kid = torch_fidelity.metric_kid
    with monkeypatch.context() as patch:
        patch.setattr(kid.np.random, "RandomState", lambda _: SimpleNamespace(choice=choice))
        wanted = kid.kid_features_to_metric(x, y, kid_subsets=8, kid_subset_size=30, verbose=False)
    assert result.mean == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-9)
    assert result.std == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-9)
    assert result.std > 0


def test_the_mean_over_subsets_has_no_bias(normal: Normal) -> None:
    """For two sets of one law it is zero within its own error, on either side."""
    x, y = normal(2_000, 4), normal(2_000, 4, seed=1)
    parts = zip(x.split(100), y.split(100), strict=True)
    means = [kernel_distance(*pair, subsets=1, subset_size=100).mean for pair in parts]
    error = np.std(means) / len(means) ** 0.5
    assert abs(np.mean(means)) < 4 * error
    assert min(means) < 0 < max(means)


def test_one_seed_gives_one_number_and_another_seed_another(normal: Normal) -> None:
    x, y = normal(80, 5), normal(80, 5, seed=1) + 0.5
    first, again, other = (kernel_distance(x, y, subsets=4, subset_size=40, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_more_subsets_keep_the_first_ones(normal: Normal) -> None:
    x, y = normal(80, 5), normal(80, 5, seed=1) + 0.5
    one, two = (kernel_distance(x, y, subsets=count, subset_size=40) for count in (1, 2))
    second = 2 * two.mean - one.mean
    assert two.std == pytest.approx(abs(one.mean - second) / 2, rel=1e-9)
    assert one.std == 0


def test_the_global_generators_are_left_alone(normal: Normal) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 -- it is this one that must stay
    kernel_distance(normal(20, 2), normal(20, 2, seed=1), subsets=2, subset_size=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002 -- the same


def test_single_precision_features_are_computed_in_double(normal: Normal) -> None:
    x, y = normal(40, 6).float() + 10, normal(40, 6, seed=1).float() + 10
    single, double = (kernel_distance(a, b, subsets=3, subset_size=20) for a, b in ((x, y), (x.double(), y.double())))
    assert single == double


def test_the_distance_grows_with_the_gap(normal: Normal) -> None:
    x, y = normal(100, 4), normal(100, 4, seed=1)
    means = [kernel_distance(x, y + gap, subsets=1, subset_size=100).mean for gap in (0, 0.5, 1)]
    assert means == sorted(means)
    assert means[2] > means[0] + 1


def test_a_subset_that_is_larger_than_a_set_is_refused(normal: Normal) -> None:
    with pytest.raises(InputError, match="subset_size is 1000, but one set has 30 samples only"):
        kernel_distance(normal(40, 2), normal(30, 2))
    with pytest.raises(InputError, match="subset_size is 1; at least 2"):
        kernel_distance(normal(40, 2), normal(30, 2), subset_size=1)
    with pytest.raises(InputError, match="subsets is 0; at least 1"):
        kernel_distance(normal(40, 2), normal(30, 2), subset_size=10, subsets=0)
    with pytest.raises(InputError, match="seed is -1; at least 0"):
        kernel_distance(normal(40, 2), normal(30, 2), subset_size=10, seed=-1)
