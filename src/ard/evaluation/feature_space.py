"""What distances between a teacher's images are measured on: a classifier, the teacher's own features, or the states.

A number says which (`name`): only numbers of one space compare.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ard.core.types import Features, Latents
from ard.diffusion.process import DiffusionKind
from ard.networks.condition import Condition
from ard.networks.discriminator import teacher_features
from ard.teacher.teacher import Teacher

CHUNK = 128  # Images at work together.
LOW_NOISE = 0.02  # Flow's time at which the teacher looks at images; VP's is its first noisy one.
MOST_VALUES = 512  # Of a state that stands for itself: a covariance of more needs too many images.


class FeatureKind(StrEnum):
    """Which features a comparison uses."""

    CLASSIFIER = "classifier"  # Of a small classifier, trained on the classes of the data set or of --real.
    TEACHER = "teacher"  # The teacher's own, of a middle block at low noise.
    PIXELS = "pixels"  # The states themselves, averaged to at most 512 values.


@runtime_checkable
class FeatureSpace(Protocol):
    """A fixed function of images."""

    @property
    def name(self) -> str:
        """What tables call it, such as "classifier features"."""
        ...

    def features(self, images: Latents) -> tuple[Features, Tensor | None]:
        """(features, predicted classes where the space has any) on the CPU, whatever the number of images."""
        ...


@dataclass(frozen=True)
class TeacherFeatures:
    """The mean over the tokens of a middle block of the teacher, which looks at the images at low noise.

    They need no data and no other network, and they are what the teacher itself tells apart: a measure of adherence to
    the teacher, not of quality. The condition is none, or the first class of a teacher that knows no "no class".
    """

    teacher: Teacher
    condition: Condition
    """Of one image: what the teacher is told that all images show."""

    @property
    def block(self) -> int:
        """The middle one."""
        return (self.teacher.network.config.depth - 1) // 2

    @property
    def name(self) -> str:
        """Says which block."""
        return f"features of the teacher's block {self.block + 1} of {self.teacher.network.config.depth}"

    @torch.no_grad()
    def features(self, images: Latents) -> tuple[Features, None]:
        """One row of the network's width per image."""
        network, diffusion = self.teacher.network, self.teacher.diffusion
        device = next(network.parameters()).device
        least = 1.0 if diffusion.kind is DiffusionKind.VP else LOW_NOISE
        found = []
        for part in images.float().split(CHUNK):
            t = diffusion.network_time(torch.full((len(part),), least, device=device))
            condition = self.condition[torch.zeros(len(part), dtype=torch.long)].to(device)
            tokens, _ = teacher_features(network, part.to(device), t, condition, blocks=[self.block])
            found.append(tokens[0].mean(dim=1).float().cpu())
        return torch.cat(found), None


@dataclass(frozen=True)
class StateFeatures:
    """The states themselves, averaged over squares until there are at most 512 values."""

    channels: int
    size: int

    @property
    def side(self) -> int:
        """Of the averaged states."""
        return max(side for side in range(1, self.size + 1) if self.channels * side**2 <= MOST_VALUES or side == 1)

    @property
    def name(self) -> str:
        """Says to what size they are averaged."""
        return f"the states themselves at {self.side} x {self.side}"

    def features(self, images: Latents) -> tuple[Features, None]:
        """One row of averaged values per image."""
        return adaptive_avg_pool2d(images.float(), self.side).flatten(1), None
