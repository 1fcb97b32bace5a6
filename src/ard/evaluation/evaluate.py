"""The rows of every table: a teacher, its untrained few-step run, and students, all from the same noises."""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ard.core.config import fingerprint_of
from ard.core.types import Features, Labels, Latents, OtherFeatures, RealImages, States, Trajectory
from ard.evaluation.feature_space import FeatureSpace
from ard.evaluation.metrics.frechet import frechet_distance
from ard.evaluation.metrics.moments import Moments, moments_of
from ard.evaluation.metrics.precision_recall import precision_recall
from ard.methods.losses import step_errors
from ard.networks.condition import Condition
from ard.student.folder import StudentCard
from ard.student.sampling import sample
from ard.student.student import Student
from ard.teacher.teacher import Ode, Teacher, solve_pf_ode
from ard.trajectories.source import TrajectoryBatch

Conditions = Callable[[Labels], Condition]
"""What labels ask for: `classes`, or the prompts of a text by their numbers."""


def classes(labels: Labels) -> Condition:
    """The labels of a teacher with classes ask for what they say."""
    return labels


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The numbers that depend on a model's images alone, None where there is nothing to compare with."""

    fd_teacher: float
    """Fréchet distance to an independent batch of the teacher's samples."""
    fd_real: float | None
    """Fréchet distance to the real images."""
    fd_floor: float
    """The distance of the teacher's own evaluation batch to that independent batch: the noise floor of fd_teacher."""
    paired_mse: float | None
    """Mean squared distance to the teacher's sample from the same noise; pixels are cut to [-1, 1], latents are not."""
    precision: float
    """Of the images, compared with `against`."""
    recall: float
    accuracy: float | None
    """How often the classifier sees the class that was asked for."""
    measured_on: str = "classifier features"
    """What distances, precision and recall are measured on."""
    against: str = "the real images"
    """What precision and recall compare with."""


def number(value: float | None) -> float:
    """A score as a curve takes it: not a number where there is none."""
    return math.nan if value is None else value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; None where a column has no meaning."""

    model: str
    """teacher, untrained (the teacher itself in S guided steps), kd, step or ard."""
    num_steps: int
    state: str | None = None
    prediction: str | None = None
    mask: str | None = None
    history_blocks: int | None = None
    history: str | None = None
    loss: str | None = None
    """R, or R + D where a discriminator took part; "then R" or "then R + D" when another student was the start."""
    nfe: int
    """Network evaluations per image; guidance counts twice."""
    seed: int | None = None
    """The training seed."""
    recipe: str | None = None
    """A fingerprint of the training, the seed apart."""
    iterations: int
    seconds: float
    """Training time."""
    scores: Scores
    error_teacher_forced: list[float] = field(default_factory=list)
    """Mean squared error per step when every step reads the teacher's states."""
    error_rolled_out: list[float] = field(default_factory=list)
    """The same when it reads its own: the difference is the exposure bias."""

    def plain(self) -> dict[str, Any]:
        """The row as JSON holds it, its scores among the other columns."""
        plain = asdict(self)
        return {**plain.pop("scores"), **plain}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Row":
        """The row that `plain` was made from."""
        names = {column.name for column in fields(Scores)}
        scores = Scores(**{name: plain[name] for name in names & plain.keys()})
        return cls(scores=scores, **{name: value for name, value in plain.items() if name not in names})


@dataclass(frozen=True)
class Judge:
    """What all rows are compared with: the teacher's samples, an independent batch of them, and real images if any."""

    space: FeatureSpace
    real: OtherFeatures | None
    noise: Latents
    """The evaluation noises."""
    paired: Latents
    """The teacher's samples from them."""
    labels: Labels
    conditions: Conditions
    """What labels ask for."""
    reference: Features
    """Of the teacher's independent batch."""
    floor: float
    real_floor: float | None
    """The Fréchet distance of one half of the real images to the other, mean over halvings."""
    pictures: bool
    """Whether states are pictures, whose values end at -1 and 1, and no latents."""

    @property
    def identity(self) -> dict[str, Any]:
        """What kept rows were measured with: other features, teacher batches or real images have other floors."""
        return {"measured_on": self.space.name, "fd_floor": self.floor, "fd_real_floor": self.real_floor}

    @functools.cached_property
    def reference_moments(self) -> Moments:
        """Of the teacher's independent batch."""
        return moments_of(self.reference)

    def scores(self, images: Latents) -> Scores:
        """The scores of images that were made from the evaluation noises."""
        scores, predicted = self._measured(images)
        seen = None if predicted is None else float((predicted == self.labels).float().mean())
        paired = paired_error(images, self.paired, pictures=self.pictures)
        return replace(scores, paired_mse=paired, accuracy=seen)

    def scores_of_others(self, images: Latents) -> Scores:
        """The scores of images from wherever, of which no noise or label is known."""
        return self._measured(images)[0]

    def _measured(self, images: Latents) -> tuple[Scores, Tensor | None]:
        """What needs no noises, and the classes that the space sees."""
        features, predicted = self.space.features(images)
        others = self.reference if self.real is None else self.real
        moments, count = moments_of(features), min(len(others), len(features))
        # Balls shrink as a set grows: sets of the same size, the first rows of each, compare alike.
        precision, recall = precision_recall(others[:count], features[:count])
        scores = Scores(
            fd_teacher=frechet_distance(moments, self.reference_moments),
            fd_real=None if self.real is None else frechet_distance(moments, moments_of(self.real)),
            fd_floor=self.floor,
            paired_mse=None,
            precision=precision,
            recall=recall,
            accuracy=None,
            measured_on=self.space.name,
            against="the teacher's other samples" if self.real is None else "the real images",
        )
        return scores, predicted


def paired_error(images: Latents, paired: Latents, *, pictures: bool = True) -> float:
    """Mean squared distance of images to the teacher's from the same noises; pixels are cut to [-1, 1]."""
    bound = 1.0 if pictures else float("inf")
    return float((images.clamp(-bound, bound) - paired.clamp(-bound, bound)).square().mean())


def make_judge(
    space: FeatureSpace,
    real: RealImages | None,
    evaluation: TrajectoryBatch,
    reference: Latents,
    *,
    conditions: Conditions = classes,
    pictures: bool = True,
) -> Judge:
    """A judge from the teacher's evaluation trajectories, its independent samples, and real images where there are any.

    `conditions` gives what labels ask for, which is themselves for a teacher with classes.
    """
    paired = evaluation.states[:, -1].float()
    reference_features = space.features(reference)[0]
    real_features = None if real is None else space.features(real)[0]
    floor = frechet_distance(moments_of(space.features(paired)[0]), moments_of(reference_features))
    return Judge(
        space=space,
        real=real_features,
        noise=evaluation.states[:, 0].float(),
        paired=paired,
        labels=evaluation.labels,
        conditions=conditions,
        reference=reference_features,
        floor=floor,
        real_floor=None if real_features is None else _distance_of_halves(real_features),
        pictures=pictures,
    )


def _distance_of_halves(features: OtherFeatures, *, halvings: int = 8) -> float:
    """What a perfect generator with as many samples as half of the real images would have, in the mean."""
    generator, half = torch.Generator().manual_seed(0), len(features) // 2
    orders = [torch.randperm(len(features), generator=generator) for _ in range(halvings)]
    halves = [(moments_of(features[order[:half]]), moments_of(features[order[half:]])) for order in orders]
    return sum(frechet_distance(*pair) for pair in halves) / halvings


def row_of_others(judge: Judge, images: Latents, *, model: str, num_steps: int = 0, nfe: int = 0) -> Row:
    """Images that are no model's from the evaluation noises, such as those of a store or of a folder."""
    scores = judge.scores_of_others(images)
    return Row(model=model, num_steps=num_steps, nfe=nfe, iterations=0, seconds=0.0, scores=scores)


def teacher_row(judge: Judge, ode: Ode, *, iterations: int, seconds: float) -> Row:
    """The teacher itself, with all its steps."""
    scores = judge.scores(judge.paired)
    steps = ode.num_teacher_steps
    return Row(model="teacher", num_steps=steps, nfe=ode.nfe, iterations=iterations, seconds=seconds, scores=scores)


def untrained_row(judge: Judge, teacher: Teacher, ode: Ode, *, batch_size: int) -> tuple[Row, Latents]:
    """The teacher's own solver with few guided steps (`ode`), which is what distillation has to beat."""
    ends = (0, ode.num_teacher_steps)
    batches = zip(judge.noise.split(batch_size), judge.labels.split(batch_size), strict=True)
    device = next(teacher.network.parameters()).device
    images = torch.cat(
        [
            solve_pf_ode(teacher, x.to(device), judge.conditions(label).to(device), ode=ode, kept=ends).x_t[:, -1].cpu()
            for x, label in batches
        ]
    )
    scores = judge.scores(images)
    steps = ode.num_teacher_steps
    recipe = fingerprint_of(ode.times)
    row = Row(model="untrained", num_steps=steps, nfe=ode.nfe, recipe=recipe, iterations=0, seconds=0.0, scores=scores)
    return row, images


def student_row(
    judge: Judge, student: Student, card: StudentCard, evaluation: TrajectoryBatch, *, batch_size: int
) -> tuple[Row, Latents]:
    """A student; `evaluation` holds the teacher's trajectories in the student's kind of state, on its grid."""
    forced, rolled = run_student(student, evaluation, batch_size=batch_size, conditions=judge.conditions)
    targets = evaluation.states[:, 1:].float()
    config = student.config
    row = Row(
        model=card.model,
        num_steps=config.num_steps,
        state=config.state,
        prediction=config.prediction,
        mask=config.mask,
        history_blocks=config.history_blocks,
        history=config.history,
        loss=card.loss,
        nfe=config.num_steps,
        seed=card.seed,
        recipe=card.recipe,
        iterations=card.iterations,
        seconds=card.seconds,
        scores=judge.scores(rolled[:, -1]),
        error_teacher_forced=step_errors(forced, targets).mean(dim=0).tolist(),
        error_rolled_out=step_errors(rolled[:, 1:], targets).mean(dim=0).tolist(),
    )
    return row, rolled[:, -1]


@torch.no_grad()
def run_student(
    student: Student, batch: TrajectoryBatch, *, batch_size: int, conditions: Conditions = classes
) -> tuple[States, Trajectory]:
    """(predictions when each step reads the teacher's states, the student's own trajectories), on the CPU."""
    device = student.tau.device
    forced, rolled = [], []
    for states, label in zip(batch.states.split(batch_size), batch.labels.split(batch_size), strict=True):
        states, condition = states.to(device).float(), conditions(label).to(device)
        forced.append(student(states[:, :-1], condition).cpu())
        rolled.append(sample(student, states[:, 0], condition=condition).cpu())
    return torch.cat(forced), torch.cat(rolled)
