"""Whether adversarial training has gone wrong: the discriminator has won, or the student's images are too alike."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ard.condition import Condition
from ard.devices import send
from ard.errors import InputError
from ard.losses import AdversarialForm
from ard.models.student import Student
from ard.sampling import sample
from ard.trajectories.source import TrajectorySource
from ard.types import Labels, Latents

WINDOW = 200  # Updates over which the smoothed values forget.
WON = 0.02  # The discriminator's loss as a part of what it has by chance.
ALIKE, APART = 0.5, 1.5  # The spread of the student's images as a part of the teacher's.
PER_LABEL, NUM_LABELS = 8, 8  # Size of the probe.


def chance_loss(form: AdversarialForm) -> float:
    """The discriminator's loss when all its logits are 0: it cannot tell real from fake."""
    match form:
        case AdversarialForm.HINGE:
            return 2.0
        case AdversarialForm.RELATIVISTIC:
            return math.log(2)


class Contest:
    """Smoothed losses of both sides, kept in the checkpoint: who is winning does not depend on where a run stopped."""

    def __init__(self, form: AdversarialForm, device: torch.device) -> None:
        self.chance = chance_loss(form)
        self.smoothed = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, discriminator: Float[Tensor, ""], generator: Float[Tensor, ""], *, count: int) -> None:
        """Take in the losses of an update; `count` were taken in before. The generator's is smoothed twice."""
        values = torch.stack([discriminator, generator, generator]).double()
        windows = (WINDOW, WINDOW, 4 * WINDOW)
        shares = torch.tensor([1 / min(count + 1, window) for window in windows], dtype=torch.float64)
        self.smoothed.lerp_(values, send(shares, self.smoothed.device))

    def require_open(self, *, step: int, count: int) -> None:
        """InputError when the discriminator hardly errs any more and the generator's loss does not fall."""
        discriminator, generator, before = self.smoothed.tolist()
        part = discriminator / self.chance
        if count >= WINDOW and part < WON and generator >= before:
            raise InputError(
                f"the discriminator has won at update {step}: its loss is {part:.1%} of that by chance and the "
                "generator's does not fall; the last checkpoint is kept: try a lower --discriminator-learning-rate or "
                "a higher --penalty-weight, in another --out"
            )


def within_label_spread(images: Latents, label: Labels) -> Float[Tensor, ""]:
    """Root mean square distance of the images to the mean image of their label."""
    means = torch.stack([images[label == one].mean(dim=0) for one in label])
    return (images - means).square().mean().sqrt()


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Some trajectories with few labels, on which the student's diversity is measured, always on the same ones."""

    noise: Latents
    images: Latents
    """The teacher's from these noises."""
    labels: Labels
    condition: Condition
    """What the labels stand for."""

    @torch.no_grad()
    def diversity(self, student: Student) -> float:
        """The spread within labels of the student's own roll-outs, as a part of the teacher's: 1 is as diverse."""
        made = sample(student, self.noise, condition=self.condition)[:, -1]
        spread, teachers = (within_label_spread(images, self.labels) for images in (made, self.images))
        return float((spread + 1e-6) / (teachers + 1e-6))  # 1 where no label has two images.


def probe_from(source: TrajectorySource, device: torch.device) -> Probe:
    """A few trajectories of each of the first labels."""
    states, labels = source.first_of_labels(num_labels=NUM_LABELS, per_label=PER_LABEL)
    states = states.to(device).float()
    condition = source.condition(labels).to(device)
    return Probe(noise=states[:, 0], images=states[:, -1], labels=labels.to(device), condition=condition)


def require_diverse(diversity: float, *, step: int) -> None:
    """InputError when the student's images of a label are far more alike than the teacher's, or far less."""
    if not ALIKE <= diversity <= APART:
        what = "collapsed" if diversity < ALIKE else "come apart"
        raise InputError(
            f"the student has {what} at update {step}: its images of a class differ {diversity:.2f} times as much "
            "as the teacher's; the last checkpoint is kept: try a lower --adversarial-weight, in another --out"
        )
