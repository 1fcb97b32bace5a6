"""Whether adversarial training has gone wrong: the discriminator has won, or the student's images are too alike."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.devices import send
from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.methods.losses import AdversarialForm
from ard.networks.condition import Condition
from ard.student.sampling import sample
from ard.student.student import Student
from ard.teacher.teacher import Teacher, noise_for_seeds, solve_pf_ode
from ard.trajectories.source import TrajectorySource

WINDOW = 200  # Updates over which the smoothed values forget.
WON = 0.02  # The discriminator's loss as a part of what it has by chance.
ALIKE, APART = 0.5, 1.5  # The spread of the student's images as a part of the teacher's.
PER_LABEL, NUM_LABELS = 8, 8  # Size of the probe.
FEWEST_PER_LABEL, NUM_SOLVED_LABELS = 4, 4  # Images of a label that show a spread; size of a probe that is solved.
PROBE_SEED = 6_000_000  # Noises that neither training nor evaluation nor tuning uses.


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
    """Root mean square distance of the images to the mean image of their label; nothing is read back from a device."""
    same = (label[:, None] == label).to(images.dtype)
    means = torch.einsum("ij,j...->i...", same / same.sum(dim=1, keepdim=True), images)
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
    def diversity(self, student: Student) -> Float[Tensor, ""]:
        """The spread within labels of the student's own roll-outs, as a part of the teacher's: 1 is as diverse."""
        made = sample(student, self.noise, condition=self.condition)[:, -1]
        spread, teachers = (within_label_spread(images, self.labels) for images in (made, self.images))
        return spread / (teachers + 1e-6)


def probe_from(source: TrajectorySource, teacher: Teacher, device: torch.device) -> Probe:
    """A few trajectories of each of the first labels: the source's, or where it has too few of a label, solved now.

    A text has one prompt per trajectory as a rule, and of a single image no spread within labels is seen.
    """
    states, labels = source.first_of_labels(num_labels=NUM_LABELS, per_label=PER_LABEL)
    if labels.unique(return_counts=True)[1].min() < FEWEST_PER_LABEL:
        labels = labels.unique()[:NUM_SOLVED_LABELS].repeat_interleave(FEWEST_PER_LABEL)
        condition = source.condition(labels).to(device)
        noise, images = _solve(source, teacher, condition, len(labels), device)
        return Probe(noise=noise, images=images, labels=labels.to(device), condition=condition)
    states = states.to(device).float()
    condition = source.condition(labels).to(device)
    return Probe(noise=states[:, 0], images=states[:, -1], labels=labels.to(device), condition=condition)


@torch.no_grad()
def _solve(
    source: TrajectorySource, teacher: Teacher, condition: Condition, count: int, device: torch.device
) -> tuple[Latents, Latents]:
    """(noises, the teacher's images from them), solved as the source's trajectories are."""
    ode, shape = source.manifest.ode, teacher.network.config
    seeds = range(PROBE_SEED, PROBE_SEED + count)
    noise = noise_for_seeds(seeds, (shape.channels, shape.latent_size, shape.latent_size)).to(device)
    return noise, solve_pf_ode(teacher, noise, condition, ode=ode, kept=(ode.num_teacher_steps,)).x_t[:, -1]


def require_diverse(diversity: float, *, start: float, step: int) -> None:
    """InputError when the student's images of a label are far more alike than the teacher's, or far less.

    `start` is the diversity before the stage: a student that was less diverse (or more) may stay as it was.
    """
    if not ALIKE * min(start, 1) <= diversity <= APART * max(start, 1):
        what = "collapsed" if diversity < ALIKE else "come apart"
        raise InputError(
            f"the student has {what} at update {step}: its images of a class differ {diversity:.2f} times as much "
            "as the teacher's; the last checkpoint is kept: try a lower --adversarial-weight, in another --out"
        )
