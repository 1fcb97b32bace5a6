"""Training a student on trajectories (Section 3.3): all steps in one forward, teacher's or own history."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ard.devices import autocast
from ard.errors import InputError, require_at_least
from ard.losses import regression_loss
from ard.models.student import Student
from ard.sampling import sample
from ard.training.loop import TrainConfig
from ard.training.randomness import batch_ids, generator_for
from ard.trajectories.source import TrajectorySource
from ard.types import Labels, States


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What is particular to training a student."""

    gate_learning_rate_factor: float = 30.0
    """How much faster the history gates learn than the rest."""
    own_history: float = 0.0
    """Probability, at the end, that a trajectory's inputs are the student's own roll-out; 0 is the paper's."""
    own_history_ramp: float = 0.5
    """Part of the training over which that probability grows from 0 to its final value."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("own_history", "own_history_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        require_at_least(0, {"gate_learning_rate_factor": self.gate_learning_rate_factor})

    def own_history_at(self, step: int, iterations: int) -> float:
        """The probability of own history at update `step`: linear growth, then constant."""
        ramp = self.own_history_ramp * iterations
        return self.own_history * min(1.0, step / ramp if ramp else 1.0)


class Pass(NamedTuple):
    """One update's forward pass: what the student was given, what it predicts and what the teacher has there."""

    inputs: States
    x_hat: States
    targets: States
    label: Labels


def distill_loss(
    student: Student, source: TrajectorySource, config: TrainConfig, distill: DistillConfig
) -> Callable[[int], Tensor]:
    """The regression loss of update `step` (Eq. 6; Eq. 4 for M1 or N = 0)."""
    pass_at = student_pass(student, source, config, distill)

    def loss_at(step: int) -> Tensor:
        passed = pass_at(step)
        return regression_loss(passed.x_hat, passed.targets).mean()

    return loss_at


def student_pass(
    student: Student, source: TrajectorySource, config: TrainConfig, distill: DistillConfig
) -> Callable[[int], Pass]:
    """The forward pass of update `step`: its trajectories, all their steps at once."""
    device = student.step_embedding.device

    def order(length: int, step: int) -> Tensor:
        return batch_ids(length, seed=config.seed, step=step, batch=config.batch_size)

    def pass_at(step: int) -> Pass:
        batch = source.batch_at(step, order)
        states, label = batch.states.to(device).float(), batch.labels.to(device)
        inputs, targets = states[:, :-1], states[:, 1:]
        share = distill.own_history_at(step, config.iterations)
        with autocast(device):
            if share > 0:
                inputs = mix_in_own_history(student, inputs, label, share, generator_for("own", config.seed, step))
            x_hat = student(inputs, label)
        return Pass(inputs, x_hat.float(), targets, label)

    return pass_at


def mix_in_own_history(
    student: Student, inputs: States, label: Labels, share: float, generator: torch.Generator
) -> States:
    """Replace each trajectory's inputs by the student's own roll-out from the same noise with probability `share`."""
    own = torch.rand(len(inputs), generator=generator) < share
    if not own.any():  # Asked on the CPU, where the numbers were drawn.
        return inputs
    rolled = sample(student, inputs[:, 0], label=label)[:, :-1]
    return torch.where(own.to(inputs.device).view(-1, 1, 1, 1, 1), rolled, inputs)


def parameter_groups(student: Student, distill: DistillConfig) -> list[dict[str, Any]]:
    """AdamW's groups: the history gates with their own learning-rate factor, and everything else."""
    rest = [parameter for name, parameter in student.named_parameters() if name != "gates"]
    return [{"params": rest}, {"params": [student.gates], "factor": distill.gate_learning_rate_factor}]
