"""Where a student's trajectories come from, as the options say: a store, or the teacher at work."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard.core.errors import InputError
from ard.student.student import StudentConfig
from ard.teacher.origin import find_teacher
from ard.teacher.teacher import Teacher, load_teacher
from ard.text.encoded import EncodedText
from ard.training.loop import TrainConfig
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.online import OnlineConfig, OnlineTrajectories, plan_online
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.source import TrajectorySource

Grid = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Supply:
    """A teacher and its trajectories, before it is known which of their points a student learns from."""

    teacher: Teacher
    """What becomes the student."""
    folder: Path
    """The teacher's."""
    manifest: Manifest
    name: str
    """What messages call the trajectories."""
    plan: dict[str, Any]
    """What decides the trajectories beside the teacher and its ODE."""
    device: torch.device
    open: Callable[["Supply", StudentConfig, Grid], TrajectorySource]
    """The states of such a student on such a grid."""

    @functools.cached_property
    def frozen(self) -> Teacher:
        """The teacher again, for what reads it in training: the student has taken over the other's weights."""
        return load_teacher(self.folder, self.device)


def stored(store: Path, teacher_folder: Path | None, device: torch.device) -> Supply:
    """A store; InputError when there is none, or when the teacher that is found did not make it."""
    manifest, _ = load_manifest(store)
    folder = teacher_folder or find_teacher(manifest.teacher, store)
    teacher = load_teacher(folder, device)
    if teacher.hash != manifest.teacher.hash:
        raise InputError(
            f"the teacher in {folder} ({teacher.hash}) did not make {store} ({manifest.teacher.hash}); "
            "give the right --teacher"
        )

    def read(_: Supply, student: StudentConfig, grid: Grid) -> TrajectorySource:
        return TrajectoryReader(store, state=student.state, num_steps=student.num_steps, grid=grid)

    plan = {"trajectories": {"identity": manifest.identity, "num": manifest.num}}
    return Supply(
        teacher=teacher, folder=folder, manifest=manifest, name=str(store), plan=plan, device=device, open=read
    )


def online(
    out: Path, folder: Path, config: OnlineConfig, train: TrainConfig, prompts: Path | None, device: torch.device
) -> Supply:
    """The teacher in `folder`, at work while the student in `out` is trained; InputError for what it cannot do."""
    teacher = load_teacher(folder, device)
    text = EncodedText(prompts) if prompts else None
    parts = train.accumulate  # What is one batch to the student comes in so many passes.
    in_passes = dataclasses.replace(config, pool_batches=config.pool_batches * parts)
    manifest = plan_online(
        out,
        folder,
        teacher,
        in_passes,
        batch_size=train.pass_size,
        iterations=train.iterations * parts,
        seed=train.seed,
        text=text,
    )

    def solve(supply: Supply, student: StudentConfig, grid: Grid) -> TrajectorySource:
        return OnlineTrajectories(
            lambda: supply.frozen, manifest, in_passes, state=student.state, grid=grid, text=text, device=device
        )

    return Supply(
        teacher=teacher,
        folder=folder,
        manifest=manifest,
        name="what --online makes",
        plan={"online": config, **({"text": text.manifest.identity} if text else {})},
        device=device,
        open=solve,
    )
