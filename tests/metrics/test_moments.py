"""Moments against NumPy's, whatever the batches, the precision and the number of processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics.moments import Moments, MomentsAccumulator, moments_of

Normal = Callable[..., Tensor]

# One of two ranks: takes its share of each set and leaves what the merged accumulators hold.
RANK_SCRIPT = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from torch import distributed
from ard.evaluation.metrics.moments import MomentsAccumulator

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
results = {}
for name, features in load_file(folder / f"{rank}.safetensors").items():
    accumulator = MomentsAccumulator()
    for batch in features.split(7):
        accumulator.update(batch)
    accumulator.all_reduce()
    moments = accumulator.moments()
    results |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance}
    assert moments.count == 50, moments.count
save_file(results, folder / f"result{rank}.safetensors")
distributed.destroy_process_group()
"""


def run_ranks(folder: Path) -> None:
    """Two processes, of which none is left behind when the other fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, "-c", RANK_SCRIPT]
    ranks = [
        subprocess.Popen([*words, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def in_batches(features: Tensor, size: int) -> Moments:
    accumulator = MomentsAccumulator()
    for batch in features.split(size):
        accumulator.update(batch)
    return accumulator.moments()


@pytest.mark.parametrize(("rows", "width"), [(2, 1), (40, 1), (40, 5), (5, 40)])
def test_moments_are_numpys(normal: Normal, rows: int, width: int) -> None:
    features = normal(rows, width) @ normal(width, width, seed=1) + 3
    moments = moments_of(features)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean, np.mean(features.numpy(), axis=0), rtol=1e-12, atol=1e-12)
    wanted = np.cov(features.numpy(), rowvar=False).reshape(width, width)
    np.testing.assert_allclose(moments.covariance, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_moments_do_not_depend_on_the_batch_size(normal: Normal, size: int, offset: float) -> None:
    features = normal(100, 6) + offset
    whole, parts = moments_of(features), in_batches(features, size)
    assert parts.count == 100
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_digits_are_not_lost_far_from_the_origin(normal: Normal) -> None:
    features = normal(100, 3).mul(64).round().div(64)  # Exact in float64, also after the shift.
    near, far = in_batches(features, 9), in_batches(features + 2.0**20, 9)
    torch.testing.assert_close(far.covariance, near.covariance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_low_precision_are_summed_in_double(normal: Normal, dtype: torch.dtype) -> None:
    features = normal(300, 4).add(100).to(dtype)
    moments = in_batches(features, 16)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64
    np.testing.assert_allclose(moments.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-11)


def test_empty_batches_change_nothing(normal: Normal) -> None:
    features = normal(20, 3)
    accumulator = MomentsAccumulator()
    for batch in (features[:0], features[:12], features[:0], features[12:]):
        accumulator.update(batch)
    torch.testing.assert_close(accumulator.moments().covariance, moments_of(features).covariance)


def test_moments_stay_as_they_are_when_more_features_arrive(normal: Normal) -> None:
    accumulator = MomentsAccumulator()
    accumulator.update(normal(20, 3))
    before = accumulator.moments()
    mean, covariance = before.mean.clone(), before.covariance.clone()
    accumulator.update(normal(20, 3, seed=1))
    assert torch.equal(before.mean, mean)
    assert torch.equal(before.covariance, covariance)


def test_no_gradient_is_kept(normal: Normal) -> None:
    assert not moments_of(normal(9, 2).requires_grad_()).covariance.requires_grad


def test_one_sample_has_no_covariance(normal: Normal) -> None:
    with pytest.raises(InputError, match="number of samples is 1; at least 2"):
        moments_of(normal(1, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_told(normal: Normal, value: float) -> None:
    features = normal(8, 3)
    features[5, 1] = value
    with pytest.raises(InputError, match="8 samples are not all finite"):
        moments_of(features)


def test_one_process_is_its_own_sum(normal: Normal) -> None:
    accumulator = MomentsAccumulator()
    accumulator.update(normal(20, 3))
    before = accumulator.moments()
    accumulator.all_reduce()
    after = accumulator.moments()
    assert after.count == 20
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-15, atol=0)
    assert torch.equal(after.covariance, before.covariance)


@pytest.mark.slow
def test_two_processes_hold_what_one_process_with_everything_holds(normal: Normal, tmp_path: Path) -> None:
    sets = {"uneven": normal(50, 5) + 1000, "all at rank 1": normal(50, 3, seed=1)}
    cuts = {"uneven": 33, "all at rank 1": 0}
    shares = [{name: features[: cuts[name]].contiguous() for name, features in sets.items()}]
    shares += [{name: features[cuts[name] :].contiguous() for name, features in sets.items()}]
    for rank, share in enumerate(shares):
        save_file(share, tmp_path / f"{rank}.safetensors")
    run_ranks(tmp_path)
    first, second = (load_file(tmp_path / f"result{rank}.safetensors") for rank in range(2))
    for name, features in sets.items():
        alone = moments_of(features)
        torch.testing.assert_close(first[f"{name}.mean"], alone.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(first[f"{name}.covariance"], alone.covariance, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(first[name], second[name]) for name in first)
