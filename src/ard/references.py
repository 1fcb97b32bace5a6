"""What evaluation compares with, made when missing and kept: a classifier and two independent teacher batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ard.config import to_plain
from ard.datasets import load_data
from ard.devices import default_workers
from ard.errors import InputError
from ard.evaluation.classifier import (
    TrainedClassifier,
    classifier_loss,
    held_out_accuracy,
    load_classifier,
    new_classifier,
)
from ard.evaluation.evaluate import Judge, Row, make_judge, student_row, teacher_row, untrained_row
from ard.models.student import StateKind, Student
from ard.models.weights import save_model
from ard.processes import working_in
from ard.progress import progress_bar
from ard.students import StudentCard, check_teacher, load_student
from ard.teacher import Ode, Teacher, load_teacher, load_teacher_card
from ard.training.loop import TrainConfig, train
from ard.training.randomness import batch_ids
from ard.trajectories.collect import collect, plan_store
from ard.trajectories.manifest import load_manifest
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.source import TrajectoryBatch
from ard.types import Latents

EVALUATION_SEED = 10_000_000  # Far from the seeds that training uses.
REFERENCE_SEED = 20_000_000
MIN_SAMPLES = 100  # Fewer say nothing about 64 features.
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


def references_in(folder: Path, *, num: int) -> References:
    """The usual places in `folder`."""
    return References(
        evaluation=folder / "trajectories-evaluation",
        reference=folder / "trajectories-reference",
        classifier=folder / "classifier",
        num=num,
    )


def make_classifier(folder: Path, data_name: str) -> TrainedClassifier:
    """Train the classifier that the features come from, unless `folder` has it, or another command makes it."""
    with working_in(folder, wait=True):
        if not (folder / "config.json").exists():
            _train_classifier(folder, data_name)
    return load_classifier(folder, data_name)


def _train_classifier(folder: Path, data_name: str) -> None:
    data = load_data(data_name)
    network = new_classifier(data)
    config = TrainConfig(iterations=400, batch_size=64, learning_rate=2e-3, checkpoint_every=400)
    loss = classifier_loss(
        network, data, lambda rows, step: batch_ids(rows, seed=0, step=step, batch=config.batch_size)
    )
    run = {"data": data_name, "train": to_plain(config)}
    network.load_state_dict(train(network, loss, config, folder, run=run, description="classifier").averaged())
    accuracy = held_out_accuracy(network.eval(), data)
    save_model(folder, "classifier", {"data": data_name, "test_accuracy": accuracy}, network.state_dict())


def make_teacher_batches(
    references: References, teacher_folder: Path, teacher: Teacher, ode: Ode, *, device: torch.device
) -> None:
    """Collect both teacher batches, or what is missing of them."""
    seeds = {references.evaluation: EVALUATION_SEED, references.reference: REFERENCE_SEED}
    for folder, seed in seeds.items():
        whole = folder == references.evaluation  # Students of every grid and kind of state are evaluated there.
        collect_batch(
            folder, teacher_folder, teacher, ode, num=references.num, first_seed=seed, whole=whole, device=device
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
    )
    # Another command may be making the same batch: it is waited for, and then there is nothing to make.
    with working_in(folder, wait=True), progress_bar(num, folder.name, unit="traj") as bar:
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
    ode = students[0][1].ode
    for (_, card), folder in zip(students, folders, strict=True):
        check_teacher(card, teacher, teacher_folder)
        if card.ode != ode:
            raise InputError(f"{folder} learned from other trajectories than {folders[0]}; evaluate them apart")
    data = require_data(teacher, teacher_folder)
    classifier = make_classifier(references.classifier, data)
    make_teacher_batches(references, teacher_folder, teacher, ode, device=device)
    everyone = torch.arange(references.num)
    paired, independent = (
        TrajectoryReader(folder, state=StateKind.X_T, num_steps=1).read(everyone)
        for folder in (references.evaluation, references.reference)
    )
    judge = make_judge(classifier, load_data(data).images, paired, independent.states[:, -1].float())
    return Comparison(teacher=teacher, ode=ode, students=students, judge=judge, references=references)


def require_data(teacher: Teacher, folder: Path) -> str:
    """The name of the teacher's data set; InputError for an imported teacher, which brings none."""
    if teacher.data is None:
        raise InputError(
            f"the teacher in {folder} was imported and brings no data set, which its classifier and the distances to "
            "real images need; measure its students with ard evaluate --samples"
        )
    return teacher.data


@dataclass(frozen=True)
class Evaluation:
    """Rows, and each row's images for the first evaluation noises."""

    rows: list[Row]
    images: list[Latents]
    real_floor: float
    """The noise floor of the distance to the real images."""


def evaluate_students(
    folders: Sequence[Path], teacher_folder: Path, references: References, *, device: torch.device, batch_size: int
) -> Evaluation:
    """Rows for the teacher, for its untrained run with each student's number of steps, and for every student."""
    comparison = prepare_comparison(folders, teacher_folder, references, device=device)
    results = list(teacher_rows(comparison, teacher_folder, batch_size=batch_size))
    for student, card in comparison.students:
        batch = comparison.evaluation_batch(card)
        results.append(student_row(comparison.judge, student, card, batch, batch_size=batch_size))
    images = [images[:SHOWN] for _, images in results]
    return Evaluation([row for row, _ in results], images, comparison.judge.real_floor)


def teacher_rows(comparison: Comparison, teacher_folder: Path, *, batch_size: int) -> Iterator[tuple[Row, Latents]]:
    """The teacher's row, and one for its untrained run on each of the students' grids."""
    judge, facts = comparison.judge, load_teacher_card(teacher_folder)
    iterations, seconds = facts.iterations or 0, facts.seconds or 0.0
    yield teacher_row(judge, comparison.ode, iterations=iterations, seconds=seconds), judge.paired
    for tau in sorted({card.tau for _, card in comparison.students}, key=len):
        few = replace(comparison.ode, times=tau)
        yield untrained_row(judge, comparison.teacher, few, batch_size=batch_size)


def read_batch(store: Path, card: StudentCard, *, num: int) -> TrajectoryBatch:
    """The first `num` trajectories of a store in the student's kind of state, on its grid."""
    reader = TrajectoryReader(store, state=card.student.state, num_steps=card.student.num_steps, grid=card.grid)
    return reader.read(torch.arange(num))
