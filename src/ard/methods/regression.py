"""Training a student on trajectories (Section 3.3): all steps in one forward, teacher's or own history."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ard.core.config import later
from ard.core.devices import autocast, send
from ard.core.draws import uniform
from ard.core.errors import InputError, require_at_least
from ard.core.model_folder import StateDict
from ard.core.random import batch_ids, generator_for
from ard.core.types import States, Trajectory
from ard.methods.losses import regression_loss
from ard.networks.condition import Condition, to_device
from ard.student.lora import add_adapters, merged
from ard.student.sampling import sample
from ard.student.student import Student
from ard.training.loop import TrainConfig
from ard.training.state import trained_parameters
from ard.trajectories.ahead import ReadAhead
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.source import TrajectorySource


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What is particular to training a student."""

    gate_learning_rate_factor: float = 30.0
    """How much faster the history gates learn than the rest."""
    own_history: float = 0.0
    """Probability, at the end, that a trajectory's inputs are the student's own roll-out; 0 is the paper's."""
    own_history_ramp: float = 0.5
    """Part of the training over which that probability grows from 0 to its final value."""
    lora_rank: int = later(0)
    """Train adapters of this rank beside the blocks' linear layers instead of their weights; 0: the weights."""
    lora_alpha: float | None = later(None)
    """The adapters' scale times their rank; None: the rank."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("own_history", "own_history_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        require_at_least(0, {"gate_learning_rate_factor": self.gate_learning_rate_factor})
        require_at_least(0, {"lora_rank": self.lora_rank})
        if self.lora_alpha is not None:
            if not self.lora_rank:
                raise InputError(f"lora_alpha is {self.lora_alpha}, which has no meaning without --lora-rank")
            if not 0 < self.lora_alpha < math.inf:
                raise InputError(f"lora_alpha is {self.lora_alpha}; it must be a positive number")

    @property
    def scale(self) -> float:
        """LoRA's alpha."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    def own_history_at(self, step: int, iterations: int) -> float:
        """The probability of own history at update `step`: linear growth, then constant."""
        ramp = self.own_history_ramp * iterations
        return self.own_history * min(1.0, step / ramp if ramp else 1.0)


class Given(NamedTuple):
    """The trajectories of a pass, and what they show, on the CPU."""

    states: Trajectory
    condition: Condition


class Pass(NamedTuple):
    """One update's forward pass: what the student was given, what it predicts and what the teacher has there."""

    inputs: States
    x_hat: States
    targets: States
    condition: Condition


def distill_loss(
    student: Student, source: TrajectorySource, config: TrainConfig, distill: DistillConfig
) -> Callable[[int], Tensor]:
    """The regression loss of a pass (Eq. 6; Eq. 4 for M1 or N = 0)."""
    pass_at = student_pass(student, source, config, distill)

    def loss_at(number: int) -> Tensor:
        passed = pass_at(number)
        return regression_loss(passed.x_hat, passed.targets).mean()

    return loss_at


def student_pass(
    student: Student, source: TrajectorySource, config: TrainConfig, distill: DistillConfig
) -> Callable[[int], Pass]:
    """Forward pass `number`: its trajectories, all their steps at once.

    The passes cut the same endless stream of trajectories as the updates do, into smaller parts.
    """
    device = student.step_embedding.device
    given_at = given_by(source, config, pin=device.type == "cuda")

    def pass_at(number: int) -> Pass:
        step, part = divmod(number, config.accumulate)
        given = given_at(number)
        # The stored precision travels and is widened on the device.
        states, condition = send(given.states, device).float(), to_device(given.condition, device)
        inputs, targets = states[:, :-1], states[:, 1:]
        share = distill.own_history_at(step, config.iterations)
        with autocast(device):
            if share > 0:
                generator = generator_for("own", config.seed, step)
                parts = (part, config.accumulate)
                inputs = mix_in_own_history(student, inputs, condition, share, generator, part_of=parts)
            x_hat = student(inputs, condition)
        return Pass(inputs, x_hat.float(), targets, condition)

    return pass_at


def given_by(source: TrajectorySource, config: TrainConfig, *, pin: bool) -> Callable[[int], Given]:
    """What pass `number` is given, checked; from a store in its precision and read ahead, the prompts too.

    A teacher at work is not asked ahead: it computes on the device that the student needs.
    """

    def order(length: int, number: int) -> Tensor:
        return batch_ids(length, seed=config.seed, step=number, batch=config.pass_size)

    def given_at(number: int) -> Given:
        batch = source.batch_at(number, order)
        return Given(batch.states, source.condition(batch.labels))

    if not isinstance(source, TrajectoryReader):
        return given_at
    return ReadAhead(given_at, end=config.iterations * config.accumulate, pin=pin)


def mix_in_own_history(
    student: Student,
    inputs: States,
    condition: Condition,
    share: float,
    generator: torch.Generator,
    *,
    part_of: tuple[int, int] = (0, 1),
) -> States:
    """Replace each trajectory's inputs by the student's own roll-out from the same noise with probability `share`.

    The inputs are part k of a batch of n equal parts, `part_of` (k, n), and get what the whole batch would have drawn.
    """
    part, parts = part_of
    own = uniform((parts * len(inputs),), generator=generator).chunk(parts)[part] < share
    if not own.any():  # Asked on the CPU, where the numbers were drawn.
        return inputs
    rolled = sample(student, inputs[:, 0], condition=condition)[:, :-1]
    return torch.where(send(own, inputs.device).view(-1, 1, 1, 1, 1), rolled, inputs)


def adapt(student: Student, config: TrainConfig, distill: DistillConfig) -> None:
    """Give the student the adapters that `distill` asks for, drawn from the run's seed; none for rank 0."""
    if not distill.lora_rank:
        return

    def generator_of(name: str) -> torch.Generator:
        return generator_for("lora", config.seed, name)

    add_adapters(student, rank=distill.lora_rank, alpha=distill.scale, generator_of=generator_of)


def published_weights(student: Student, averaged: StateDict, distill: DistillConfig) -> StateDict:
    """The averaged weights under an ordinary student's names, adapters merged."""
    if not distill.lora_rank:
        return averaged
    return merged({**student.state_dict(), **averaged}, rank=distill.lora_rank, alpha=distill.scale)


def parameter_groups(student: Student, distill: DistillConfig) -> list[dict[str, Any]]:
    """AdamW's groups of what is trained: the history gates with their own learning-rate factor, and the rest."""
    rest = [parameter for name, parameter in trained_parameters(student).items() if name != "gates"]
    return [{"params": rest}, {"params": [student.gates], "factor": distill.gate_learning_rate_factor}]
