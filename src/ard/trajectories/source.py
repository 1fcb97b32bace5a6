"""Where trajectories come from: one interface for a store that is read and a teacher that solves them meanwhile."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ard.core.types import Labels, Trajectory
from ard.networks.condition import Condition
from ard.text.encoded import EncodedText, condition_of
from ard.trajectories.manifest import Manifest

Order: TypeAlias = Callable[[int, int], Tensor]  # (how many rows there are, update) to the rows of that update.


class TrajectoryBatch(NamedTuple):
    """Some trajectories in one kind of state, noise first, with their labels: classes, or the numbers of prompts."""

    states: Trajectory
    labels: Labels


@runtime_checkable
class TrajectorySource(Protocol):
    """Gives every update its trajectories; which ones depends on its number, never on what was asked before."""

    manifest: Manifest
    """Which teacher makes them, how, and of what shape."""
    text: EncodedText | None = None
    """The prompts, where the teacher reads text."""

    @property
    def tau(self) -> tuple[float, ...]:
        """The times of their states, noise first."""
        ...

    def condition(self, labels: Labels) -> Condition:
        """What the trajectories with these labels show, as networks take it, on the CPU."""
        return condition_of(self.text, labels)

    def batch_at(self, step: int, order: Order) -> TrajectoryBatch:
        """The trajectories that update `step` trains on; InputError when a value is infinite or not a number."""
        ...

    def draw_at(self, step: int, num: int, generator: torch.Generator) -> TrajectoryBatch:
        """So many trajectories, drawn from those that are there at update `step`."""
        ...

    def first_of_labels(self, *, num_labels: int, per_label: int) -> TrajectoryBatch:
        """A few trajectories of each of the first labels, always the same ones."""
        ...
