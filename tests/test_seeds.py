"""Seeds end where torch's generator begins to repeat itself, and every command says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ard import cli
from ard.cli.options import parse_seeds
from ard.cli.sweep import Sweep
from ard.core.errors import InputError
from ard.core.seeds import NUM_SEEDS
from ard.student.student import StateKind
from ard.studies.demo import DemoConfig
from ard.teacher.teacher import Guidance, Teacher, noise_for_seeds, plan_ode
from ard.training.loop import TrainConfig
from ard.trajectories.collect import plan_store

LAST = NUM_SEEDS - 1


def test_the_noises_repeat_from_there_on() -> None:
    """The reason for the limit. Should torch come to read all 64 bits, the limit can go."""
    noise = noise_for_seeds(torch.tensor([0, LAST, NUM_SEEDS]), (1, 2, 2))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


def test_seeds_are_parsed_up_to_the_last() -> None:
    assert parse_seeds(f"7,{LAST - 1}-{LAST}") == [7, LAST - 1, LAST]


@pytest.mark.parametrize("text", [f"{NUM_SEEDS}", f"0-{NUM_SEEDS}", f"{NUM_SEEDS},3", "0-999999999999999999"])
def test_larger_seeds_are_refused_before_they_are_counted(text: str) -> None:
    with pytest.raises(InputError, match=rf"largest of --seeds {text} is \d+; allowed: 0 to {LAST}, because larger"):
        parse_seeds(text)


def test_a_sweep_refuses_them(make_teacher: Callable[..., Teacher]) -> None:
    with pytest.raises(InputError, match=f"--seeds 0,{NUM_SEEDS} is {NUM_SEEDS}"):
        Sweep(trajectories=Path("store"), out=Path("out"), seeds=f"0,{NUM_SEEDS}")._grid(make_teacher())


@pytest.mark.parametrize(
    ("first_seed", "num", "words"),
    [
        (NUM_SEEDS, 1, f"seed is {NUM_SEEDS}; allowed: 0 to {LAST}"),
        (-1, 5, "seed is -1"),
        (LAST, 2, f"the last of 2 seeds from {LAST} on is {NUM_SEEDS}"),
    ],
)
def test_a_store_whose_seeds_go_too_far_is_not_planned(
    make_teacher: Callable[..., Teacher], first_seed: int, num: int, words: str
) -> None:
    teacher = make_teacher()
    ode = plan_ode(teacher, num_teacher_steps=2, guidance=Guidance())
    settings = {"kept": (0, 2), "states": (StateKind.X_T,), "shard_size": 4}
    plan_store(Path("store"), Path("teacher"), teacher, ode, num=1, first_seed=LAST, **settings)
    with pytest.raises(InputError, match=words):
        plan_store(Path("store"), Path("teacher"), teacher, ode, num=num, first_seed=first_seed, **settings)


def test_a_demonstration_refuses_them() -> None:
    assert DemoConfig(seed=LAST - 1, num_seeds=2).seed == LAST - 1
    with pytest.raises(InputError, match=f"the last of 2 seeds from {LAST} on is {NUM_SEEDS}"):
        DemoConfig(seed=LAST, num_seeds=2)


def test_training_refuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TrainConfig(seed=LAST).seed == LAST
    assert cli.run(["teach", "--out", str(tmp_path / "teacher"), "--seed", str(NUM_SEEDS)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "teacher").exists()
