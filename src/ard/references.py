"""What evaluation compares with, made when missing and kept: a classifier and two independent teacher batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ard.condition import Condition, Prompts, padded
from ard.config import fingerprint_of, to_plain
from ard.datasets import ImageData, load_data
from ard.decoding import space_of_teacher
from ard.devices import default_workers
from ard.errors import InputError
from ard.evaluation.classifier import (
    TrainedClassifier,
    classifier_loss,
    held_out_accuracy,
    load_classifier,
    new_classifier,
)
from ard.evaluation.evaluate import (
    Conditions,
    Judge,
    Row,
    classes,
    make_judge,
    row_of_others,
    student_row,
    teacher_row,
    untrained_row,
)
from ard.evaluation.feature_pass import evenly_spread
from ard.evaluation.feature_space import FeatureKind, FeatureSpace, StateFeatures, TeacherFeatures
from ard.models.student import StateKind, Student
from ard.models.transformer import TransformerConfig
from ard.models.weights import save_model
from ard.progress import progress_bar
from ard.students import StudentCard, check_teacher, find_text, load_student
from ard.teacher import Ode, Teacher, load_teacher, load_teacher_card
from ard.text import EncodedText
from ard.timegrid import uniform_indices
from ard.training.loop import TrainConfig, train
from ard.training.randomness import batch_ids
from ard.training.real_set import open_real_set
from ard.trajectories.collect import collect, plan_store
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.source import TrajectoryBatch
from ard.types import Latents

EVALUATION_SEED = 10_000_000  # Far from the seeds that training uses.
REFERENCE_SEED = 20_000_000
MIN_SAMPLES = 100  # Fewer say nothing about 64 features.
MOST_REAL = 10_000  # Real images of a path that are compared with.
SHOWN = 16  # How many noises the pictures show.


@dataclass(frozen=True, kw_only=True)
class References:
    """Where the references of one teacher lie, and how many samples they have."""

    evaluation: Path
    """Trajectories from the noises that every model is evaluated on."""
    reference: Path
    """An independent batch of the teacher's samples."""
    classifier: Path
    num: int
    features: FeatureKind | None = None
    """What distances are measured on; None: a classifier where the teacher's data are known, else the teacher."""
    real: Path | None = None
    """Real images, as `ard distill --real` takes them; None: the teacher's data set, or none."""


def references_in(
    folder: Path, *, num: int, features: FeatureKind | None = None, real: Path | None = None
) -> References:
    """The usual places in `folder`."""
    return References(
        evaluation=folder / "trajectories-evaluation",
        reference=folder / "trajectories-reference",
        classifier=folder / "classifier",
        num=num,
        features=features,
        real=real,
    )


class RealData(NamedTuple):
    """Real images in the teacher's kind of state, and what they are called."""

    name: str
    data: ImageData


def real_data(teacher: Teacher, manifest: Manifest, path: Path | None) -> RealData | None:
    """The images at `path`, or the teacher's data set; None for an imported teacher without a path.

    At most `MOST_REAL` of the images at a path, evenly spread. InputError when they do not fit the trajectories.
    """
    if path is None:
        return RealData(teacher.data, load_data(teacher.data)) if teacher.data is not None else None
    real = open_real_set(path, manifest)
    rows = torch.tensor(evenly_spread(len(real.labels), MOST_REAL))
    images = real.draw(rows, torch.Generator().manual_seed(0)).float()
    name = f"{fingerprint_of(real.identity)} ({len(real.labels)} images)"
    return RealData(name, ImageData(images, real.labels[rows], manifest.num_classes))


def make_space(
    references: References, teacher: Teacher, real: RealData | None, conditions: Conditions, *, pictures: bool
) -> FeatureSpace:
    """What the references are measured on; InputError for a classifier where there is nothing to train it on."""
    kind = references.features or (FeatureKind.TEACHER if teacher.data is None else FeatureKind.CLASSIFIER)
    shape = teacher.network.config
    match kind:
        case FeatureKind.TEACHER:
            return TeacherFeatures(teacher, unconditional(shape, conditions))
        case FeatureKind.PIXELS:
            return StateFeatures(shape.channels, shape.latent_size)
        case FeatureKind.CLASSIFIER:
            if real is None:
                raise InputError(
                    "--features classifier needs images with classes to train it on: name them with --real, or take "
                    "--features teacher"
                )
            if real.data.num_classes < 2:
                raise InputError("--features classifier needs several classes; take --features teacher")
            return make_classifier(references.classifier, real, pictures=pictures)


def unconditional(shape: TransformerConfig, conditions: Conditions) -> Condition:
    """What asks one image for nothing: no class, the empty prompt, or the first class where there is no other way."""
    if shape.text is None:
        return torch.tensor([shape.num_classes if shape.null_class else 0])
    first = conditions(torch.tensor([0]))
    assert isinstance(first, Prompts)  # noqa: S101 a text's conditions are prompts
    return padded([first.null], null=first.null, length=len(first.null))


def make_classifier(folder: Path, real: RealData, *, pictures: bool = True) -> TrainedClassifier:
    """Train the classifier that the features come from, unless `folder` has it."""
    if not (folder / "config.json").exists():
        data = real.data
        network = new_classifier(data, pictures=pictures)
        config = TrainConfig(iterations=400, batch_size=64, learning_rate=2e-3, checkpoint_every=400)
        loss = classifier_loss(
            network, data, lambda rows, step: batch_ids(rows, seed=0, step=step, batch=config.batch_size)
        )
        run = {"data": real.name, "train": to_plain(config)}
        network.load_state_dict(train(network, loss, config, folder, run=run, description="classifier").averaged())
        accuracy = held_out_accuracy(network.eval(), data)
        save_model(folder, "classifier", {"data": real.name, "test_accuracy": accuracy}, network.state_dict())
    return load_classifier(folder, real.name, real.data, pictures=pictures)


def make_teacher_batches(
    references: References,
    teacher_folder: Path,
    teacher: Teacher,
    ode: Ode,
    *,
    text: EncodedText | None,
    device: torch.device,
) -> None:
    """Collect both teacher batches, or what is missing of them."""
    seeds = {references.evaluation: EVALUATION_SEED, references.reference: REFERENCE_SEED}
    for folder, seed in seeds.items():
        whole = folder == references.evaluation  # Students of every grid and kind of state are evaluated there.
        collect_batch(
            folder,
            teacher_folder,
            teacher,
            ode,
            num=references.num,
            first_seed=seed,
            whole=whole,
            text=text,
            device=device,
        )


def collect_batch(
    folder: Path,
    teacher_folder: Path,
    teacher: Teacher,
    ode: Ode,
    *,
    num: int,
    first_seed: int,
    whole: bool,
    text: EncodedText | None = None,
    device: torch.device,
) -> None:
    """Collect trajectories that are for comparison only: `whole` ones in both kinds of state, or just their ends."""
    last = ode.num_teacher_steps
    stored = load_manifest(folder)[0].num if (folder / "manifest.json").exists() else 0
    num = max(num, stored)  # A larger batch serves too: its first rows are used.
    manifest = plan_store(
        folder,
        teacher_folder,
        teacher,
        ode,
        kept=tuple(range(last + 1)) if whole else (0, last),
        states=(StateKind.X_T, StateKind.X_0_HAT) if whole else (StateKind.X_T,),
        num=num,
        first_seed=first_seed,
        text=text,
    )
    with progress_bar(num, folder.name, unit="traj") as bar:
        collect(folder, manifest, teacher, device=device, workers=default_workers(device), progress=bar.update)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Students of one teacher that learned from the same kind of trajectories, and what judges them."""

    teacher: Teacher
    ode: Ode
    students: list[tuple[Student, StudentCard]]
    judge: Judge
    references: References

    def evaluation_batch(self, card: StudentCard) -> TrajectoryBatch:
        """All evaluation trajectories in the student's kind of state, on its grid."""
        return read_batch(self.references.evaluation, card, num=self.references.num)


def prepare_comparison(
    folders: Sequence[Path], teacher_folder: Path, references: References, *, device: torch.device
) -> Comparison:
    """Load the students and make the references that are missing; InputError when the students do not compare."""
    students = [load_student(folder, device) for folder in folders]
    teacher = load_teacher(teacher_folder, device)
    card = students[0][1]
    for (_, other), folder in zip(students, folders, strict=True):
        check_teacher(other, teacher, teacher_folder)
        if other.ode != card.ode:
            raise InputError(f"{folder} learned from other trajectories than {folders[0]}; evaluate them apart")
    text = find_text(None, card, folders[0])
    judge = prepare_judge(teacher, teacher_folder, card.ode, references, text=text, device=device)
    return Comparison(teacher=teacher, ode=card.ode, students=students, judge=judge, references=references)


def prepare_judge(
    teacher: Teacher,
    teacher_folder: Path,
    ode: Ode,
    references: References,
    *,
    text: EncodedText | None,
    device: torch.device,
) -> Judge:
    """What judges images of `teacher`, solved as `ode` says, with the references that are missing made."""
    shape = teacher.network.config
    facts = load_teacher_card(teacher_folder)
    if references.real and not (references.evaluation / "manifest.json").exists():  # Looked at before the work.
        real_data(teacher, _planned(references, teacher_folder, teacher, ode, text), references.real)
    make_teacher_batches(references, teacher_folder, teacher, ode, text=text, device=device)
    readers = [
        TrajectoryReader(folder, state=StateKind.X_T, num_steps=1)
        for folder in (references.evaluation, references.reference)
    ]
    everyone = torch.arange(references.num)
    paired, independent = (reader.read(everyone) for reader in readers)
    pictures = space_of_teacher(facts, teacher_folder).is_of_pictures
    real = real_data(teacher, readers[0].manifest, references.real)
    space = make_space(references, teacher, real, readers[0].condition, pictures=pictures)
    return make_judge(
        space,
        real.data.images if real else None,
        paired,
        independent.states[:, -1].float(),
        conditions=classes if shape.text is None else readers[0].condition,
        pictures=pictures,
    )


def _planned(
    references: References, teacher_folder: Path, teacher: Teacher, ode: Ode, text: EncodedText | None
) -> Manifest:
    """The manifest of the evaluation trajectories that are to be made."""
    return plan_store(
        references.evaluation,
        teacher_folder,
        teacher,
        ode,
        kept=(0, ode.num_teacher_steps),
        states=(StateKind.X_T,),
        num=references.num,
        first_seed=EVALUATION_SEED,
        text=text,
    )


@dataclass(frozen=True)
class Evaluation:
    """Rows, and each row's images for the first evaluation noises."""

    rows: list[Row]
    images: list[Latents]
    real_floor: float | None
    """The noise floor of the distance to the real images."""


Others = Mapping[str, Latents]
"""Images in the teacher's kind of state that are no model's from the evaluation noises, by what they are called."""


def evaluate_students(
    folders: Sequence[Path], teacher_folder: Path, references: References, *, device: torch.device, batch_size: int
) -> Evaluation:
    """Rows for the teacher, for its untrained run with each student's number of steps, and for every student."""
    comparison = prepare_comparison(folders, teacher_folder, references, device=device)
    return evaluation_of(comparison, teacher_folder, batch_size=batch_size)


def evaluation_of(
    comparison: Comparison, teacher_folder: Path, *, batch_size: int, others: Others | None = None
) -> Evaluation:
    """Rows for the teacher, its untrained runs, every student of a comparison, and others without noises."""
    results = list(teacher_rows(comparison, teacher_folder, batch_size=batch_size))
    for student, card in comparison.students:
        batch = comparison.evaluation_batch(card)
        results.append(student_row(comparison.judge, student, card, batch, batch_size=batch_size))
    results += [(row_of_others(comparison.judge, x, model=model), x) for model, x in (others or {}).items()]
    shown = [images[:SHOWN] for _, images in results]
    return Evaluation([row for row, _ in results], shown, comparison.judge.real_floor)


def compare_teacher(
    teacher_folder: Path, ode: Ode, references: References, *, text: EncodedText | None, device: torch.device
) -> Comparison:
    """A comparison without students: of a teacher that is solved as `ode` says, and of others."""
    teacher = load_teacher(teacher_folder, device)
    judge = prepare_judge(teacher, teacher_folder, ode, references, text=text, device=device)
    return Comparison(teacher=teacher, ode=ode, students=[], judge=judge, references=references)


def images_of_store(store: Path, *, num: int) -> Latents:
    """The last states of at most `num` trajectories of a store, evenly spread."""
    manifest, _ = load_manifest(store)
    reader = TrajectoryReader(store, state=manifest.states[0], num_steps=1)
    return reader.read(torch.tensor(evenly_spread(manifest.num, num))).states[:, -1].float()


def images_of_pictures(path: Path, manifest: Manifest, *, num: int) -> Latents:
    """At most `num` of the pictures or encoded latents at a path, evenly spread, in the trajectories' kind of state."""
    found = open_real_set(path, manifest)
    rows = torch.tensor(evenly_spread(len(found.labels), num))
    return found.draw(rows, torch.Generator().manual_seed(0)).float()


def teacher_rows(comparison: Comparison, teacher_folder: Path, *, batch_size: int) -> Iterator[tuple[Row, Latents]]:
    """The teacher's row, and one for its untrained run on each of the students' grids."""
    judge, facts = comparison.judge, load_teacher_card(teacher_folder)
    iterations, seconds = facts.iterations or 0, facts.seconds or 0.0
    yield teacher_row(judge, comparison.ode, iterations=iterations, seconds=seconds), judge.paired
    usual = {times_of(comparison.ode, steps) for steps in (1, 2, 4) if steps <= comparison.ode.num_teacher_steps}
    for tau in sorted({card.tau for _, card in comparison.students} or usual, key=len):
        few = replace(comparison.ode, times=tau)
        yield untrained_row(judge, comparison.teacher, few, batch_size=batch_size)


def times_of(ode: Ode, num_steps: int) -> tuple[float, ...]:
    """The times of an evenly spaced run with fewer steps."""
    return tuple(ode.times[index] for index in uniform_indices(ode.num_teacher_steps, num_steps))


def read_batch(store: Path, card: StudentCard, *, num: int) -> TrajectoryBatch:
    """The first `num` trajectories of a store in the student's kind of state, on its grid."""
    reader = TrajectoryReader(store, state=card.student.state, num_steps=card.student.num_steps, grid=card.grid)
    return reader.read(torch.arange(num))
