"""A mixture in two dimensions: where the noise does not tell the mode, regression blurs, and R + D sharpens."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ard.diffusion.process import Diffusion
from ard.methods.adversarial import AdversarialConfig, Adversary, RealSource, adversarial_loss, real_samples
from ard.methods.collapse import probe_from
from ard.methods.regression import DistillConfig, distill_loss, student_pass
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.history import HistoryMask
from ard.student.sampling import sample
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import Teacher
from ard.training.loop import TrainConfig, train
from ard.trajectories.reader import TrajectoryBatch, TrajectoryReader

SHAPE = TransformerConfig(width=32, depth=1, num_heads=2, patch_size=1, latent_size=1, channels=2, num_classes=1)
MODES = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


class Mixture(TrajectoryReader):
    """Trajectories of one step from noise to a mode that the noise does not decide."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        points = MODES[torch.randint(4, (2000,), generator=generator)] + 0.05 * torch.randn(
            2000, 2, generator=generator
        )
        noise = torch.randn(2000, 2, generator=generator)
        self.states = torch.stack([noise, points], dim=1).view(2000, 2, 2, 1, 1)
        self.labels = torch.zeros(2000, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.states)

    def read(self, ids: Tensor) -> TrajectoryBatch:
        return TrajectoryBatch(self.states[ids], self.labels[ids])

    def require_finite(self, batch: TrajectoryBatch, ids: Tensor) -> None:
        """They are."""


def make_teacher() -> Teacher:
    """A random network: its features tell points apart, which is all that the heads need."""
    network = Transformer(SHAPE)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    with torch.no_grad():
        network.x_embedder.weight.mul_(5)
    return Teacher(network, Diffusion(), "mixture", "0" * 16)


def trained(folder: Path, start: Student | None, *, adversarial: bool, iterations: int, rate: float) -> Student:
    """A student trained further, with R or with R + D."""
    teacher, reader = make_teacher(), Mixture()
    frozen = replace(teacher, network=copy.deepcopy(teacher.network))
    config = StudentConfig(num_steps=1, mask=HistoryMask.DIAGONAL, history_blocks=0)
    student = Student(teacher.network, teacher.diffusion, (1.0, 0.0), config).requires_grad_(True)
    if start is not None:
        student.load_state_dict(start.state_dict())
    schedule = TrainConfig(iterations=iterations, batch_size=64, learning_rate=rate, warmup=0, log_every=iterations)
    if not adversarial:
        train(
            student, distill_loss(student, reader, schedule, DistillConfig()), schedule, folder, run={}, description="R"
        )
        return student
    options = AdversarialConfig(real=RealSource.TEACHER, adversarial_warmup=40, adversarial_cap=10.0)
    real_at = real_samples(RealSource.TEACHER, reader, "mixture", seed=0)
    adversary = Adversary(student, frozen, real_at, probe_from(reader, frozen, torch.device("cpu")), options, seed=0)
    loss = adversarial_loss(student_pass(student, reader, schedule, DistillConfig()), adversary)
    train(student, loss, schedule, folder, run={}, description="R + D", companion=adversary)
    return student


def distance_to_modes(student: Student) -> float:
    """Mean distance of new samples to the nearest mode."""
    noise = torch.randn(1000, 2, 1, 1, generator=torch.Generator().manual_seed(2))
    points = sample(student, noise, condition=torch.zeros(1000, dtype=torch.long))[:, -1].flatten(1)
    return float(torch.cdist(points, MODES).min(dim=1).values.mean())


@pytest.mark.slow
def test_regression_blurs_between_the_modes_and_a_discriminator_sharpens(tmp_path: Path) -> None:
    start = trained(tmp_path / "start", None, adversarial=False, iterations=100, rate=3e-3)
    further = trained(tmp_path / "R", start, adversarial=False, iterations=200, rate=1e-3)
    sharp = trained(tmp_path / "R + D", start, adversarial=True, iterations=200, rate=1e-3)
    blurred = distance_to_modes(further)
    assert blurred > 1.2, "the mean of the modes is 1.41 from each"
    assert distance_to_modes(sharp) < 0.75 * blurred
