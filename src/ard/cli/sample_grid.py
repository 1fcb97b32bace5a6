"""The rows of ard sample --grid: the teacher and the students, all from the same noises (Figure 5)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.images.pictures import Pixels, to_pixels
from ard.networks.autoencoder import DecodedImages
from ard.networks.condition import Condition, to_device
from ard.networks.transformer import TransformerConfig, condition_name
from ard.student.fast_sampling import Speed, drawing
from ard.student.folder import StudentCard, check_teacher
from ard.student.student import Student
from ard.teacher.teacher import Ode, Teacher, load_teacher, noise_for_seeds, solve_pf_ode


class TeacherRows(StrEnum):
    """Which rows of the teacher a grid has."""

    FULL = "full"  # Its whole guided ODE.
    BOTH = "both"  # And below it its own solver, untrained, on each of the students' grids.
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """A model's label and how it makes its last states from noises: images, or the latents of some."""

    label: str
    draw: Callable[[Latents, Condition], Latents]


def teacher_grid_rows(
    cards: Sequence[StudentCard], folder: Path, which: TeacherRows, *, device: torch.device
) -> list[GridRow]:
    """The rows of the students' teacher in `folder`; InputError when it is not the teacher of all."""
    teacher = load_teacher(folder, device)
    for card in cards:
        check_teacher(card, teacher, folder)
    rows = [ode_row("teacher", teacher, ode) for ode in dict.fromkeys(card.ode for card in cards)]
    if which is TeacherRows.BOTH:
        few = dict.fromkeys(replace(card.ode, times=card.tau) for card in cards)
        rows += [ode_row("untrained", teacher, ode) for ode in few]
    return rows


def student_grid_rows(
    folders: Sequence[Path], students: Sequence[tuple[Student, StudentCard]], speed: Speed
) -> list[GridRow]:
    """A row per student, named like its folder."""
    names = [folder.resolve().name for folder in folders]
    rows = []
    for folder, name, (student, card) in zip(folders, names, students, strict=True):
        steps, shown = card.student.num_steps, str(folder) if names.count(name) > 1 else name
        rows.append(GridRow(label=f"{shown} · {steps} step{'s' * (steps > 1)}", draw=drawing(student, speed)))
    return rows


def draw_images(
    row: GridRow,
    network: TransformerConfig,
    seeds: Sequence[int],
    labels: Sequence[int],
    *,
    show: Callable[[Labels], Condition],
    batch_size: int,
    device: torch.device,
    decode: Callable[[Latents], DecodedImages],
    progress: Callable[[int], object],
) -> Iterator[Pixels]:
    """One model's pictures from the noises of `seeds` in batches, on the CPU; they do not depend on the batch size."""
    shape = (network.channels, network.latent_size, network.latent_size)
    parts = (torch.tensor(numbers).split(batch_size) for numbers in (seeds, labels))
    for part, label in zip(*parts, strict=True):
        states = row.draw(noise_for_seeds(part, shape).to(device), to_device(show(label), device))
        yield to_pixels(decode(states)).cpu()  # A quarter of the memory of the images.
        progress(len(part))


def require_one_shape(folders: Sequence[Path], cards: Sequence[StudentCard]) -> None:
    """InputError that names the first student whose latents or classes are not those of the first."""
    shapes = [(card.network.channels, card.network.latent_size, condition_name(card.network)) for card in cards]
    for folder, shape in zip(folders, shapes, strict=True):
        if shape != shapes[0]:
            told = [f"{c} x {size} x {size} with {condition}" for c, size, condition in (shape, shapes[0])]
            raise InputError(f"{folder} makes {told[0]}, {folders[0]} {told[1]}; the students of a grid make the same")


def ode_row(name: str, teacher: Teacher, ode: Ode) -> GridRow:
    """The row of a teacher with this ODE."""
    last, scale = ode.num_teacher_steps, ode.guidance.cfg_scale
    guided = f", guidance {scale:g}" if scale != 1 else ""
    return GridRow(
        label=f"{name} · {last} step{'s' * (last > 1)}{guided}",
        draw=lambda noise, condition: solve_pf_ode(teacher, noise, condition, ode=ode, kept=(0, last)).x_t[:, -1],
    )
