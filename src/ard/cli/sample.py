"""ard sample: a student, or several models from the same noises, to images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ard.cli.options import parse_range, parse_seeds, print_plan
from ard.cli.sample_grid import (
    GridRow,
    TeacherRows,
    draw_images,
    require_one_shape,
    student_grid_rows,
    teacher_grid_rows,
)
from ard.decoding import find_autoencoder, load_decoder, space_of_student
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError, require_at_least
from ard.fast_sampling import Speed
from ard.files import write_atomically
from ard.pictures import labelled_sheet, png_bytes, save_pixels
from ard.progress import progress_bar
from ard.students import StudentCard, find_text, load_student
from ard.text import num_conditions


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images from a student, one per seed.

    Seed s gets the label number s mod (how many labels there are); a student that reads text has prompts by their
    numbers instead, those of --text. What is written depends on --out: a sheet (.png),
    arrays (.npz: arr_0 uint8 NHWC, labels, seeds) or a folder of PNGs (no suffix). With --grid, several models draw
    from the same noises: one sheet with a row per model, the teacher's first (the paper's Figure 5). For instance:

        ard sample --student runs/ard --labels 0-9 --seeds 0-63 --out grid.png
        ard sample --student runs/ard --labels 3 --seeds 0-999 --out threes.npz
        ard sample --student runs/kd runs/step runs/ard --grid --seeds 1000000-1000009 --out models.png
        ard sample --student runs/ard --teacher runs/teacher --teacher-rows both --grid --seeds 0-9 --out models.png
        ard sample --student runs/pixart-ard --text runs/text --vae sd-vae-ft-ema --seeds 0-15 --out pictures.png
    """

    student: tuple[Path, ...]
    """Folder of the student; with --grid, folders of one or more."""
    out: Path
    """grid.png, samples.npz or a folder; with --grid a .png."""
    labels: str = "all"
    """Labels, such as 0-9 or 3 or 1,4,7: classes, or prompts by their numbers from 0 on; all: every one."""
    seeds: str = "1000000-1000063"
    """Seeds, such as 0-63; an image depends on its seed and label only. The noise of a seed is the same everywhere: the
    seeds of the training trajectories (from 0 on, unless collected otherwise) give noises that the student has seen."""
    text: Path | None = None
    """Folder of encoded prompts, for a student that reads text; None: those that it learned from."""
    grid: bool = False
    """A row per model and a column per seed."""
    teacher: Path | None = None
    """With --grid: folder of the teacher; None: where the first student says."""
    teacher_rows: TeacherRows = TeacherRows.FULL
    """With --grid: full (the teacher's guided ODE), both (also its untrained run on each student's grid) or none."""
    vae: Path | None = None
    """A local folder of diffusers' AutoencoderKL, or of a pipeline with one: decodes the latents of students that do
    not make pictures. None: the one that their teacher came with."""
    batch_size: int = 64
    """Images drawn together."""
    speed: Speed = Speed.REFERENCE
    """reference; fast: prepared once, the same images within rounding (of bf16 on a GPU); compiled: and compiled."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Draw and write."""
        require_at_least(1, {"batch_size": self.batch_size})
        self._refuse_clashes()
        device = resolve_device(self.device)
        students = [load_student(folder, device) for folder in self.student]
        cards = [card for _, card in students]
        require_one_shape(self.student, cards)
        autoencoder = find_autoencoder(self.vae, *map(space_of_student, cards, self.student))
        seeds = parse_seeds(self.seeds)
        text = find_text(self.text, cards[0], self.student[0])
        for folder, card in zip(self.student[1:], cards[1:], strict=True):
            find_text(text.folder if text else None, card, folder)  # The other rows read the same prompts.
        labels = self._labels(seeds, num_conditions(text, cards[0].network))
        rows = [*self._teacher_rows(cards, device), *student_grid_rows(self.student, students, self.speed)]
        if self.dry_run:
            plan = {"students": cards, "rows": [row.label for row in rows], "seeds": self.seeds, "labels": self.labels}
            vae = autoencoder.folder if autoencoder else None
            return print_plan({**plan, "vae": vae, "device": str(device), "out": self.out})
        decode = load_decoder(autoencoder, device)
        with progress_bar(len(rows) * len(seeds), "sample", unit="img") as bar:
            size, network = self.batch_size, cards[0].network
            draw = partial(draw_images, text=text, batch_size=size, device=device, decode=decode, progress=bar.update)
            pixels = [draw(row, network, seeds, labels) for row in rows]
        if not self.grid:
            save_pixels(self.out, pixels[0], labels, seeds)
            steps = cards[0].student.num_steps
            return print(f"samples {self.out}: {len(seeds)} images, {steps} network evaluations each")
        scale = max(1, 64 // pixels[0].shape[1])
        write_atomically(self.out, png_bytes(labelled_sheet([row.label for row in rows], pixels, scale=scale)))
        print(f"samples {self.out}: {len(seeds)} images from each of {len(rows)} models, the same noises for all")

    def _refuse_clashes(self) -> None:
        """InputError for options that do not go together."""
        if not self.student:
            raise InputError("--student is empty; name at least one student's folder")
        if self.grid and self.out.suffix != ".png":
            raise InputError(f"--out {self.out}: --grid writes one picture; allowed is a name ending in .png")
        if self.out.suffix not in {".png", ".npz", ""}:
            raise InputError(f"--out {self.out}: allowed are a name ending in .png or .npz, or a folder without a dot")
        if len(self.student) > 1 and not self.grid:
            raise InputError(f"--student names {len(self.student)} folders; add --grid for a row each, or name one")
        if not self.grid and (self.teacher or self.teacher_rows is not TeacherRows.FULL):
            raise InputError("--teacher and --teacher-rows have no meaning without --grid, which has rows of a teacher")
        if self.teacher and self.teacher_rows is TeacherRows.NONE:
            raise InputError(f"--teacher {self.teacher} has no meaning with --teacher-rows none; leave out one of both")

    def _labels(self, seeds: list[int], num_labels: int) -> list[int]:
        """The label of every seed; InputError for one that the student does not have."""
        choices = list(range(num_labels)) if self.labels == "all" else parse_range(self.labels, "labels")
        if unknown := [label for label in choices if label >= num_labels]:
            raise InputError(
                f"--labels {self.labels}: label {unknown[0]} is out of range; allowed: 0 to {num_labels - 1}"
            )
        return [choices[seed % len(choices)] for seed in seeds]

    def _teacher_rows(self, cards: list[StudentCard], device: torch.device) -> list[GridRow]:
        if not self.grid or self.teacher_rows is TeacherRows.NONE:
            return []
        folder = self.teacher or cards[0].teacher.folder(self.student[0])
        return teacher_grid_rows(cards, folder, self.teacher_rows, device=device)
