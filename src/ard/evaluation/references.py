"""What evaluation compares with, made when missing and kept: a classifier and two independent teacher batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ard.core.devices import default_workers
from ard.core.errors import InputError
from ard.core.processes import working_in
from ard.core.progress import progress_bar
from ard.core.types import Latents
from ard.diffusion.timegrid import uniform_indices
from ard.evaluation.evaluate import (
    Judge,
    Row,
    classes,
    make_judge,
    row_of_others,
    student_row,
    teacher_row,
    untrained_row,
)
from ard.evaluation.feature_space import FeatureKind
from ard.evaluation.measuring import make_space, real_data, some_of
from ard.student.decoding import space_of_teacher
from ard.student.folder import StudentCard, check_teacher, find_text, load_student
from ard.student.student import StateKind, Student
from ard.teacher.teacher import Ode, Teacher, load_teacher, load_teacher_card
from ard.text.encoded import EncodedText
from ard.training.real_set import open_real_set
from ard.trajectories.collect import collect, plan_store
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.source import TrajectoryBatch

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
    space = make_space(
        references.features,
        teacher,
        real,
        readers[0].condition,
        classifier=references.classifier,
        pictures=pictures,
    )
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
    """The last states of at most `num` trajectories of a store."""
    manifest, _ = load_manifest(store)
    reader = TrajectoryReader(store, state=manifest.states[0], num_steps=1)
    return reader.read(some_of(reader.labels, num)).states[:, -1].float()


def images_of_pictures(path: Path, manifest: Manifest, *, num: int) -> Latents:
    """At most `num` of the pictures or encoded latents at a path, in the trajectories' kind of state."""
    found = open_real_set(path, manifest)
    rows = some_of(found.labels, num)
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
