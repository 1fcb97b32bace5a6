"""Accumulated gradients: an update in several passes is the update in one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.core.random import batch_ids, generator_for
from ard.diffusion.process import Diffusion
from ard.images import load_data
from ard.methods.regression import DistillConfig, distill_loss, student_pass
from ard.networks.transformer import Transformer, initialise, named_config
from ard.student.folder import load_student
from ard.student.student import StateKind, Student
from ard.training.loop import TrainConfig, train
from ard.training.teach import teacher_loss
from ard.trajectories.reader import TrajectoryReader

CPU = torch.device("cpu")
ROWS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def curved_loss(weight: Tensor, config: TrainConfig) -> Callable[[int], Tensor]:
    """The mean of a function of each row, in float64."""

    def loss_at(number: int) -> Tensor:
        rows = ROWS[batch_ids(len(ROWS), seed=config.seed, step=number, batch=config.pass_size)]
        return ((rows @ weight).tanh() - rows[:, 0]).square().mean()

    return loss_at


def trained(folder: Path, accumulate: int, *, fail_at: int = -1) -> Tensor:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))
    config = TrainConfig(
        iterations=12, batch_size=24, accumulate=accumulate, warmup=0, learning_rate=0.05, checkpoint_every=4
    )
    loss = curved_loss(module.weight, config)

    def loss_at(number: int) -> Tensor:
        if number == fail_at:
            raise RuntimeError("power cut")
        return loss(number)

    train(module, loss_at, config, folder, run={"accumulate": accumulate}, description="toy")
    return module.weight.detach()


def student_and_reader(toys: Path) -> tuple[Student, TrajectoryReader]:
    student, _ = load_student(toys / "student", CPU)
    return student.requires_grad_(True), TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=2)


@pytest.mark.parametrize("accumulate", [2, 3, 24])
def test_updates_in_passes_are_the_updates_of_the_whole_batches(tmp_path: Path, accumulate: int) -> None:
    whole, parts = trained(tmp_path / "whole", 1), trained(tmp_path / "parts", accumulate)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)
    assert float((whole - torch.tensor([0.3, -0.2, 0.5])).abs().min()) > 0.01, "it has moved"


def test_a_run_that_is_cut_within_an_update_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        trained(tmp_path / "cut", 4, fail_at=4 * 7 + 2)
    assert torch.equal(trained(tmp_path / "cut", 4), trained(tmp_path / "whole", 4))


def test_one_pass_is_in_memory_at_a_time(tmp_path: Path) -> None:
    graphs: list[int] = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: object, x: Tensor) -> Tensor:
            graphs.append(graphs[-1] + 1 if graphs else 1)
            return x.clone()

        @staticmethod
        def backward(_ctx: object, slope: Tensor) -> Tensor:
            graphs.append(graphs[-1] - 1)
            return slope

    module = nn.Linear(1, 1)
    config = TrainConfig(iterations=2, batch_size=8, accumulate=4)
    loss = lambda _: Counted.apply(module.weight).sum() + module.bias.sum()  # noqa: E731
    train(module, loss, config, tmp_path, run={}, description="counted")
    assert graphs == [1, 0] * 8


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_passes_of_an_update_have_its_trajectories_and_its_own_histories(toys: Path, share: float) -> None:
    student, reader = student_and_reader(toys)
    distill = DistillConfig(own_history=share, own_history_ramp=0.0)
    config = TrainConfig(batch_size=12, iterations=10)
    parted = TrainConfig(batch_size=12, iterations=10, accumulate=3)
    with torch.no_grad():
        whole = student_pass(student, reader, config, distill)(4)
        parts = [student_pass(student, reader, parted, distill)(number) for number in (12, 13, 14)]
    for name in ("inputs", "targets", "condition"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(joined, getattr(whole, name), rtol=0, atol=1e-6), name
    assert {len(part.inputs) for part in parts} == {4}


def gradient(network: nn.Module, loss_at: Callable[[int], Tensor], passes: range) -> Tensor:
    network.zero_grad()
    for number in passes:
        (loss_at(number) / len(passes)).backward()
    return torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None])


def test_a_students_gradient_in_passes_is_that_of_the_batch(toys: Path) -> None:
    student, reader = student_and_reader(toys)
    losses = [
        distill_loss(student, reader, TrainConfig(batch_size=12, accumulate=accumulate), DistillConfig())
        for accumulate in (1, 4)
    ]
    whole, parts = gradient(student, losses[0], range(2, 3)), gradient(student, losses[1], range(8, 12))
    assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_a_teachers_gradient_in_passes_is_that_of_the_batch() -> None:
    data = load_data("digits")
    shape = named_config("tiny/4", latent_size=8, channels=1, num_classes=10)
    network = initialise(Transformer(shape), generator_for("network", 0))
    losses = [
        teacher_loss(network, Diffusion(), data, TrainConfig(batch_size=12, accumulate=accumulate), label_dropout=0.5)
        for accumulate in (1, 4)
    ]
    whole, parts = gradient(network, losses[0], range(2, 3)), gradient(network, losses[1], range(8, 12))
    assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize(("accumulate", "line"), [(5, "does not divide batch_size 32"), (0, "accumulate is 0")])
def test_a_batch_that_cannot_be_parted_is_refused(accumulate: int, line: str) -> None:
    with pytest.raises(InputError, match=line):
        TrainConfig(accumulate=accumulate)


def test_the_adversarial_stage_refuses_parts(toys: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    words = ["--resume-from", toys / "student", "--trajectories", toys / "store", "--out", tmp_path / "gan"]
    line = refused("distill", *words, "--adversarial", "--batch-size", 8, "--accumulate", 2, "--device", "cpu")
    assert "give --accumulate 1" in line


def test_a_command_trains_in_parts(toys: Path, tmp_path: Path, made: Callable[..., str]) -> None:
    words = [
        "--trajectories",
        toys / "store",
        "--num-steps",
        2,
        "--iterations",
        3,
        "--batch-size",
        8,
        "--device",
        "cpu",
    ]
    made("distill", *words, "--accumulate", 4, "--out", tmp_path / "parts")
    made("distill", *words, "--out", tmp_path / "whole")
    parts, whole = (dict(load_student(tmp_path / name, CPU)[0].named_parameters()) for name in ("parts", "whole"))
    assert all(torch.allclose(parts[name], whole[name], atol=1e-4) for name in whole)
