"""ard sample: a student, a teacher, or several models from the same noises, to images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ard.cli.asked import Prompted, asked_of_student, asked_of_teacher
from ard.cli.given import Given, require_beside
from ard.cli.options import parse_seeds, print_plan
from ard.cli.sample_grid import (
    GridRow,
    TeacherRows,
    draw_images,
    ode_row,
    require_one_shape,
    student_grid_rows,
    teacher_grid_rows,
)
from ard.cli.sample_job import Job, Models
from ard.core.config import fingerprint_of, to_plain
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError, require_at_least
from ard.core.progress import progress_bar
from ard.core.seeds import in_words
from ard.diffusion.process import Solver
from ard.diffusion.spacing import TimeSpacing
from ard.images.pictures import Pixels, SampleOutput, sample_output
from ard.networks.autoencoder import AutoencoderCard
from ard.presets.preset import NUM_TEACHER_STEPS
from ard.student.decoding import find_autoencoder, load_decoder, space_of_student, space_of_teacher
from ard.student.fast_sampling import Speed
from ard.student.folder import StudentCard, load_student
from ard.teacher.origin import find_teacher
from ard.teacher.teacher import Guidance, load_teacher, load_teacher_card, plan_ode

FIRST_SEED, SEEDS = 1_000_000, "1000000-1000063"
# What only a teacher takes that is drawn from by itself: its ODE.
ODE_OPTIONS = ("num_teacher_steps", "cfg_scale", "cfg_channels", "cfg_interval", "solver", "spacing")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw images from a student or a teacher, one per seed.

    Seed s gets the label number s mod (how many labels there are). A label is a class, by its number or its name, or a
    prompt by its number: one of --text, or of those given with --prompt. What is written depends on --out: a sheet
    (.png), arrays (.npz: arr_0 uint8 NHWC, labels, seeds) or a folder of PNGs (any other name) with a samples.json that
    says what drew them. Run again, a folder is completed; samples of another model are not mixed in. With --grid,
    several models draw from the same noises: one sheet with a row per model, the teacher's first (the paper's
    Figure 5). For instance:

        ard sample --student runs/ard --labels 0-9 --seeds 0-63 --out grid.png
        ard sample --student runs/ard --labels 3 --seeds 0-999 --out threes.npz
        ard sample --teacher runs/teacher --num-teacher-steps 50 --cfg-scale 4 --labels 0-9 --out teacher.png
        ard sample --student runs/kd runs/step runs/ard --grid --seeds 1000000-1000009 --out models.png
        ard sample --student runs/ard --teacher runs/teacher --teacher-rows both --grid --seeds 0-9 --out models.png
        ard sample --student runs/pixart-ard --text runs/text --vae sd-vae-ft-ema --seeds 0-15 --out pictures.png
        ard sample --teacher runs/pixart --prompt "a red fox" "a harbour" --text-encoder PixArt-XL-2-512 --out two.png
    """

    student: tuple[Path, ...] = ()
    """Folder of the student; with --grid, folders of one or more."""
    out: Path
    """grid.png, samples.npz or a folder; with --grid a .png."""
    labels: str = "all"
    """Labels, such as 0-9 or 3 or 1,4,7: classes, or prompts by their numbers from 0 on; all: every one. Classes also
    by their names, such as cat,dog, where the teacher has them."""
    seeds: str | None = None
    """Seeds, such as 0-63; None: 1000000-1000063, or with --prompt as many as there are prompts. An image depends on
    its seed and label only. The noise of a seed is the same everywhere: the seeds of the training trajectories (from 0
    on, unless collected otherwise) give noises that the student has seen."""
    text: Path | None = None
    """Folder of encoded prompts, for a model that reads text; None: those that a student learned from."""
    prompt: tuple[str, ...] = ()
    """Prompts, encoded now with --text-encoder."""
    text_encoder: Path | None = None
    """--prompt: what ard text encode --encoder takes."""
    max_tokens: int | None = None
    """--prompt: longer ones are cut to so many tokens; None: as the student's were, or as the pipeline reads."""
    teacher: Path | None = None
    """Folder of a teacher, whose images are drawn. With --grid: that of the students; None: where the first says."""
    num_teacher_steps: int | None = None
    """--teacher: steps of its solver; None: 24."""
    cfg_scale: float | None = None
    """--teacher: guidance; 1 means none. None: 1.5."""
    cfg_channels: int | None = None
    """--teacher: how many channels are guided, -1 for all; None: as its own sampler does."""
    cfg_interval: tuple[float, float] | None = None
    """--teacher: LOW HIGH, guide only at times between them; None: always."""
    solver: Solver | None = None
    """--teacher: ddim for VP; euler or heun for flow; dpmpp_2m for both. None: first order."""
    spacing: TimeSpacing | None = None
    """--teacher, VP: which times the solver visits. None: the teacher's own, and log_snr for dpmpp_2m."""
    grid: bool = False
    """A row per model and a column per seed."""
    teacher_rows: TeacherRows = TeacherRows.FULL
    """With --grid: full (the teacher's guided ODE), both (also its untrained run on each student's grid) or none."""
    vae: Path | None = None
    """A local folder of diffusers' AutoencoderKL, or of a pipeline with one: decodes the latents of models that do not
    make pictures. None: the one that the teacher came with."""
    batch_size: int = 64
    """Images drawn together."""
    speed: Speed = Speed.REFERENCE
    """Of students: reference; fast: prepared once, the same images within rounding (of bf16 on a GPU); compiled: and
    compiled."""
    overwrite: bool = False
    """Replace a file that is no earlier output of this command, or a folder's samples of another model."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Draw and write."""
        require_at_least(1, {"batch_size": self.batch_size})
        self._refuse_clashes()
        device = resolve_device(self.device)
        models = self._students(device) if self.student else self._teacher(device)
        autoencoder = find_autoencoder(self.vae, *models.spaces)
        seeds = self._seeds()
        choices = models.asked.labels(self.labels)
        labels = [choices[seed % len(choices)] for seed in seeds]
        if self.dry_run:
            plan = {**models.plan, "rows": [row.label for row in models.rows], "seeds": in_words(seeds)}
            plan |= {"labels": self.labels, "vae": autoencoder.folder if autoencoder else None}
            return print_plan({**plan, "device": str(device), "out": self.out})
        side = models.network.latent_size * (autoencoder.downsampling if autoencoder else 1)
        job = Job(
            out=self.out,
            models=models,
            seeds=seeds,
            labels=labels,
            made_by={**models.identity, "autoencoder": _autoencoder_identity(autoencoder)},
            image_bytes=3 * side**2,
            overwrite=self.overwrite,
        )
        draw = partial(self._draw, models, autoencoder, device)
        match sample_output(self.out):
            case SampleOutput.FOLDER:
                job.write_folder(draw)
            case SampleOutput.ARRAYS:
                job.write_arrays(draw)
            case SampleOutput.SHEET if self.grid:
                job.write_grid(draw)
            case SampleOutput.SHEET:
                job.write_sheet(draw)

    def _draw(
        self,
        models: Models,
        autoencoder: AutoencoderCard | None,
        device: torch.device,
        seeds: Sequence[int],
        labels: Sequence[int],
    ) -> Iterator[Iterator[Pixels]]:
        """The pictures of every row, in batches; models are prepared when the first is asked for."""
        decode, show = load_decoder(autoencoder, device), models.asked.load(device)
        with progress_bar(len(models.rows) * len(seeds), "sample", unit="img") as bar:
            for row in models.rows:
                yield draw_images(
                    row,
                    models.network,
                    seeds,
                    labels,
                    show=show,
                    batch_size=self.batch_size,
                    device=device,
                    decode=decode,
                    progress=bar.update,
                )

    def refuse_useless(self, given: Given) -> None:
        """InputError for an option of the teacher's rows where there are none."""
        if not self.grid:
            require_beside("--grid", ["teacher_rows", *(["teacher"] if self.student else [])], given)
        if not self.student:
            require_beside("--student", ["speed"], given)

    def _refuse_clashes(self) -> None:
        """InputError for options that do not go together."""
        ode = [name for name in ODE_OPTIONS if getattr(self, name) is not None]
        if not self.student and not self.teacher:
            raise InputError("--student is empty; name a student's folder, or a teacher's with --teacher")
        if self.grid and not self.student:
            raise InputError("--grid has rows of students; name them with --student, or leave it out")
        if self.student and ode:
            option = ode[0].replace("_", "-")
            raise InputError(f"--{option} is for --teacher by itself; a student has learned it: leave it out")
        if sample_output(self.out) is not SampleOutput.SHEET and self.grid:
            raise InputError(f"--out {self.out}: --grid writes one picture; allowed is a name ending in .png")
        if len(self.student) > 1 and not self.grid:
            raise InputError(f"--student names {len(self.student)} folders; add --grid for a row each, or name one")
        if self.teacher and self.teacher_rows is TeacherRows.NONE:
            raise InputError(f"--teacher {self.teacher} has no meaning with --teacher-rows none; leave out one of both")

    def _seeds(self) -> list[int]:
        """The seeds of --seeds, or as many as there are prompts, so that each has its picture in their order."""
        if self.seeds is not None or not self.prompt:
            return parse_seeds(SEEDS if self.seeds is None else self.seeds)
        first = -(-FIRST_SEED // len(self.prompt)) * len(self.prompt)
        return list(range(first, first + len(self.prompt)))

    def _prompts(self) -> Prompted:
        return Prompted(text=self.text, prompts=self.prompt, encoder=self.text_encoder, max_tokens=self.max_tokens)

    def _students(self, device: torch.device) -> Models:
        """The students, and in a grid their teacher above them."""
        students = [load_student(folder, device) for folder in self.student]
        cards = [card for _, card in students]
        require_one_shape(self.student, cards)
        asked = asked_of_student(cards[0], self.student[0], self._prompts())
        for folder, card in zip(self.student[1:], cards[1:], strict=True):
            asked_of_student(card, folder, self._prompts())  # The other rows read the same prompts.
        return Models(
            rows=[*self._teacher_rows(cards, device), *student_grid_rows(self.student, students, self.speed)],
            network=cards[0].network,
            spaces=[space_of_student(card, folder) for folder, card in zip(self.student, cards, strict=True)],
            asked=asked,
            evaluations=cards[0].student.num_steps,
            plan={"students": cards},
            identity={"student": _student_identity(cards[0]), "speed": str(self.speed), **asked.identity},
        )

    def _teacher_rows(self, cards: list[StudentCard], device: torch.device) -> list[GridRow]:
        if not self.grid or self.teacher_rows is TeacherRows.NONE:
            return []
        folder = self.teacher or find_teacher(cards[0].teacher, self.student[0])
        return teacher_grid_rows(cards, folder, self.teacher_rows, device=device)

    def _teacher(self, device: torch.device) -> Models:
        """The teacher by itself, its ODE solved as the options say."""
        folder = self.teacher or Path()
        card = load_teacher_card(folder)
        asked = asked_of_teacher(card, folder, self._prompts())
        teacher = load_teacher(folder, device)
        given: dict[str, Any] = {
            "cfg_scale": self.cfg_scale,
            "cfg_channels": self.cfg_channels,
            "cfg_interval": self.cfg_interval,
        }
        ode = plan_ode(
            teacher,
            num_teacher_steps=NUM_TEACHER_STEPS if self.num_teacher_steps is None else self.num_teacher_steps,
            guidance=Guidance(**{name: value for name, value in given.items() if value is not None}),
            solver=self.solver,
            spacing=self.spacing,
        )
        return Models(
            rows=[ode_row("teacher", teacher, ode)],
            network=card.network,
            spaces=[space_of_teacher(card, folder)],
            asked=asked,
            evaluations=ode.nfe,
            plan={"teacher": card, "ode": ode},
            identity={"teacher": teacher.hash, "ode": to_plain(ode), **asked.identity},
        )


def _student_identity(card: StudentCard) -> str:
    """A fingerprint of a student's card, wherever its teacher and prompts lie."""
    plain = to_plain(card)
    for name in ("teacher", "text"):
        plain[name] = plain[name]["hash"] if plain.get(name) else None
    return fingerprint_of(plain)


def _autoencoder_identity(card: AutoencoderCard | None) -> dict[str, Any] | None:
    """What decides pictures beside the latents; None where none is needed."""
    if card is None:
        return None
    return {"sha256": card.sha256, "scale": to_plain(card.scale)}
