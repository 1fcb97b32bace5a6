"""Student folders: a student with its grid, the teacher it comes from, and how it was trained."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ard.core.config import from_plain, later, to_plain
from ard.core.devices import float32_by_default
from ard.core.errors import InputError
from ard.core.model_folder import StateDict, fingerprint, load_config, load_model, require_room, save_model
from ard.diffusion.process import Diffusion
from ard.diffusion.timegrid import check_indices
from ard.networks.autoencoder import LatentScale
from ard.networks.registry import build_network
from ard.networks.transformer import TransformerConfig
from ard.student.history import HistoryMask
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import Ode, Teacher, TeacherRef
from ard.text.encoded import EncodedText, TextRef, open_referred, require_text


@dataclass(frozen=True, kw_only=True)
class StartRef:
    """The student whose published weights another one started from."""

    fingerprint: str
    recipe: str
    iterations: int
    """Its updates, those of its own start included."""


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What a student's folder says of it."""

    student: StudentConfig
    network: TransformerConfig
    diffusion: Diffusion
    grid: tuple[int, ...]
    """The student's points on the teacher's grid, noise first."""
    ode: Ode
    """How the teacher solved the trajectories that the student learned from."""
    teacher: TeacherRef
    recipe: str
    """A fingerprint of how it was trained, the seed apart: students of one recipe are compared over seeds."""
    iterations: int
    seed: int
    seconds: float
    """Training time."""
    adversarial: bool = later(default=False)
    """Whether a discriminator took part: the loss R + D instead of R."""
    start: StartRef | None = later(None)
    """The student it started from; None: the teacher."""
    text: TextRef | None = later(None)
    """The prompts that it learned from, where it reads text."""
    latents: LatentScale | None = later(None)
    """How its latents are scaled, where its teacher says."""

    def __post_init__(self) -> None:
        """Refuse a grid that is not on the teacher's."""
        check_indices(self.grid, self.ode.num_teacher_steps)
        if len(self.grid) != self.student.num_steps + 1:
            raise InputError(f"num_steps is {self.student.num_steps}, but the grid has {len(self.grid) - 1} steps")

    @property
    def tau(self) -> tuple[float, ...]:
        """The student's times, noise first."""
        return tuple(self.ode.times[index] for index in self.grid)

    @property
    def loss(self) -> str:
        """R, or R + D where a discriminator took part (the paper's Table 1); "then" it, after another student's."""
        return ("then " if self.start else "") + ("R + D" if self.adversarial else "R")

    @property
    def model(self) -> str:
        """Kd for one step, step when no history is read, else ard."""
        if self.student.num_steps == 1:
            return "kd"
        no_history = self.student.mask is HistoryMask.DIAGONAL or self.student.history_blocks == 0
        return "step" if no_history else "ard"


def build_student(card: StudentCard) -> Student:
    """A student of the card's shape, its weights not yet set."""
    return Student(build_network(card.network), card.diffusion, card.tau, card.student)


def save_student(folder: Path, card: StudentCard, weights: StateDict) -> None:
    """Publish a student folder."""
    save_model(folder, "student", to_plain(card), weights)


def load_card(folder: Path) -> StudentCard:
    """What the student in `folder` is; InputError when there is none."""
    return from_plain(StudentCard, load_config(folder, "student"), where=str(folder / "config.json"))


def start_from(folder: Path, student: Student) -> StartRef:
    """Give `student` the published weights of the one in `folder`, which has its shape; what its card will say."""
    card = load_card(folder)
    load_model(student, folder)
    before = card.start.iterations if card.start else 0
    identity = fingerprint(to_plain([card.student, card.network, card.grid]), student.state_dict())
    return StartRef(fingerprint=identity, recipe=card.recipe, iterations=before + card.iterations)


@float32_by_default()
def load_student(folder: Path, device: torch.device) -> tuple[Student, StudentCard]:
    """The student in `folder`, in evaluation mode, with its card."""
    card = load_card(folder)
    require_room(folder, depth=card.network.depth, width=card.network.width)
    student = build_student(card).eval().requires_grad_(False)
    load_model(student, folder)
    return student.to(device), card


def find_text(given: Path | None, card: StudentCard, folder: Path) -> EncodedText | None:
    """The prompts in `given`, or those that the student in `folder` learned from; None for a student that reads none.

    InputError when it needs some, or when they are another encoder's.
    """
    text = EncodedText(given) if given else open_referred(card.text, folder) if card.text else None
    require_text(text, card.network, owner=folder)
    if text and card.text and text.manifest.encoder != card.text.encoder:
        raise InputError(
            f"{text.folder} is of another encoder ({text.manifest.encoder}) than {folder} learned from "
            f"({card.text.encoder}); encode the prompts with that one"
        )
    return text


def check_teacher(card: StudentCard, teacher: Teacher, folder: Path) -> None:
    """InputError when `teacher`, loaded from `folder`, is not the one that the student comes from."""
    if teacher.hash != card.teacher.hash:
        raise InputError(
            f"the teacher in {folder} ({teacher.hash}) is not the student's ({card.teacher.hash}); "
            "give the right --teacher"
        )
