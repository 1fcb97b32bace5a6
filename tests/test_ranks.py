"""What several processes share, and how one that is started as a rank knows which it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ard.core.devices import default_workers, resolve_device
from ard.core.errors import InputError
from ard.core.ranks import gpu_of_rank, rank_and_world, require_one_process

# One of two ranks, whose gradients are (3, 0) and (0, 4) of the regression, and (1, 0) and (0, 0) of the generator.
WEIGHT_SCRIPT = """
import sys
import torch
from torch import distributed
from ard.methods.losses import adversarial_weight

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meeting", rank=rank, world_size=2)
weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
regression = (weight * torch.tensor([[3.0, 0.0], [0.0, 4.0]][rank])).sum()
generator = (weight * torch.tensor([[1.0, 0.0], [0.0, 0.0]][rank])).sum()
print(float(adversarial_weight(regression, generator, weight, cap=100.0)))
distributed.destroy_process_group()
"""


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """ranked(RANK="1", ...): this process's variables; what is not named is not set."""

    def set_variables(**values: str) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_the_adversarial_weight_is_the_ratio_of_the_norms_of_the_averaged_gradients(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, "-c", WEIGHT_SCRIPT]
    ranks = [
        subprocess.Popen([*words, str(rank), tmp_path], env=environment, stdout=subprocess.PIPE) for rank in (0, 1)
    ]
    try:
        found = [float(process.communicate(timeout=60)[0]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert found == pytest.approx([2.5 / (0.5 + 1e-4)] * 2, rel=1e-12)


def test_a_process_is_the_only_one_when_nothing_else_is_said(ranked: Callable[..., None]) -> None:
    ranked()
    assert rank_and_world() == (0, 1)
    ranked(RANK="1", WORLD_SIZE="2")
    assert rank_and_world() == (1, 2)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": ""}, "RANK is ''"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is 5 and WORLD_SIZE is 2"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK is 1 and WORLD_SIZE is 1"),
        ({"RANK": "1"}, "RANK is 1 and WORLD_SIZE is 1"),
        ({"WORLD_SIZE": "0"}, "RANK is 0 and WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE is '1.5'"),
        ({"WORLD_SIZE": "1_0"}, "WORLD_SIZE is '1_0'"),
        ({"WORLD_SIZE": "٣"}, "WORLD_SIZE is '٣'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '9999"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line(
    ranked: Callable[..., None], values: dict[str, str], named: str
) -> None:
    ranked(**values)
    with pytest.raises(InputError) as refusal:
        rank_and_world()
    assert named in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_what_runs_in_one_process_refuses_ranks(ranked: Callable[..., None]) -> None:
    ranked(WORLD_SIZE="1")
    require_one_process("ard distill")
    ranked(WORLD_SIZE="2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, and ard distill runs in one process"):
        require_one_process("ard distill")


@pytest.mark.parametrize(
    ("values", "available", "wanted"),
    [({}, 8, None), ({"LOCAL_RANK": "0"}, 8, 0), ({"LOCAL_RANK": "7"}, 8, 7), ({"LOCAL_RANK": "3"}, 1, 0)],
)
def test_each_rank_has_a_gpu_of_its_own(
    ranked: Callable[..., None], values: dict[str, str], available: int, wanted: int | None
) -> None:
    ranked(**values)
    assert gpu_of_rank(available) == wanted


def test_more_ranks_than_gpus_are_refused(ranked: Callable[..., None]) -> None:
    ranked(LOCAL_RANK="2")
    with pytest.raises(InputError, match="LOCAL_RANK is 2, and there are 2 GPUs here"):
        gpu_of_rank(2)


def test_the_device_of_a_rank_is_its_gpu(ranked: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is pretended: eight GPUs."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    ranked(LOCAL_RANK="5")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 5)
    assert chosen == [5, 5]
    assert resolve_device("cpu") == torch.device("cpu")
    ranked()
    assert resolve_device("auto") == torch.device("cuda")


def test_ranks_share_the_cores_of_a_machine(ranked: Callable[..., None]) -> None:
    ranked()
    alone = default_workers(torch.device("cpu"))
    ranked(LOCAL_WORLD_SIZE=str(alone))
    assert default_workers(torch.device("cpu")) == 1
