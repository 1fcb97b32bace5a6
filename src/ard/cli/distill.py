"""ard distill: a trajectory store to a student."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ard.cli.options import print_plan, to_plain_dict
from ard.config import fingerprint_of, flatten, to_plain
from ard.devices import DeviceName, resolve_device
from ard.errors import InputError
from ard.history import HistoryMask
from ard.models.student import Student, StudentConfig
from ard.presets import FROM_STORE
from ard.students import StudentCard, save_student
from ard.teacher import load_teacher, reference_to
from ard.training.distill import DistillConfig, distill_loss, parameter_groups
from ard.training.loop import HOUSEKEEPING, TrainConfig, is_finished, train
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.reader import TrajectoryReader


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Train a few-step student on stored trajectories.

    The preset fills in the options; what else is given wins. The same command goes on where a killed run stopped.
    For instance:

        ard distill --preset ard --trajectories runs/trajectories --out runs/ard
        ard distill --preset step --trajectories runs/trajectories --num-steps 2 --out runs/step-2
        ard distill --preset ard --mask anchor --history-blocks 3 --trajectories runs/trajectories --out runs/m3
    """

    trajectories: Path
    """Folder of the trajectory store."""
    out: Path
    """Folder of the student."""
    preset: str = "ard"
    """ard, step, kd; ard-paper, step-paper, kd-paper (its equations); ard-x0, step-x0 (the authors' code)."""
    teacher: Path | None = None
    """Folder of the teacher; None: where the store says."""
    grid: tuple[int, ...] = ()
    """The student's points as indices of teacher steps, noise first; empty: evenly spaced."""
    student: StudentConfig = field(default_factory=StudentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Train and publish."""
        device = resolve_device(self.device)
        manifest, _ = load_manifest(self.trajectories)
        teacher_folder = self.teacher or manifest.teacher.folder(self.trajectories)
        teacher = load_teacher(teacher_folder, device)
        if teacher.hash != manifest.teacher.hash:
            raise InputError(
                f"the teacher in {teacher_folder} ({teacher.hash}) did not make {self.trajectories} "
                f"({manifest.teacher.hash}); give the right --teacher"
            )
        if self.grid and self.student.num_steps not in {FROM_STORE, len(self.grid) - 1}:
            raise InputError(
                f"--num-steps {self.student.num_steps} does not fit --grid, which has {len(self.grid) - 1} steps"
            )
        grid = self.grid or _grid(manifest, self.student.num_steps)
        config = dataclasses.replace(self.student, num_steps=len(grid) - 1)
        _refuse_meaningless(config, self.distill)
        reader = TrajectoryReader(self.trajectories, state=config.state, num_steps=config.num_steps, grid=grid)
        student = Student(teacher.network, teacher.diffusion, reader.tau, config).to(device)
        student.requires_grad_(True).train()
        plan = self._plan(student, manifest, grid)
        if self.dry_run:
            return print_plan({**plan, "device": str(device), "out": self.out})
        if is_finished(self.out, plan):
            return print(f"student {self.out} is there already")
        state = train(
            student,
            distill_loss(student, reader, self.train, self.distill),
            self.train,
            self.out,
            run=plan,
            description=f"distill {self.out.name}",
            groups=parameter_groups(student, self.distill),
        )
        reference = reference_to(teacher, teacher_folder, seen_from=self.out)
        card = StudentCard(
            student=student.config,
            network=teacher.network.config,
            diffusion=teacher.diffusion,
            grid=grid,
            ode=manifest.ode,
            teacher=reference,
            recipe=_recipe(plan),
            iterations=state.step,
            seed=self.train.seed,
            seconds=state.seconds,
        )
        save_student(self.out, card, state.averaged())
        print(f"student {self.out}: {state.step} updates in {state.seconds:.0f} s")

    def _plan(self, student: Student, manifest: Manifest, grid: tuple[int, ...]) -> dict[str, Any]:
        """Everything that decides the student's weights."""
        return to_plain_dict(
            {
                "preset": self.preset,
                "student": student.config,
                "network": student.network.config,
                "grid": grid,
                "tau": tuple(student.tau.tolist()),
                "trajectories": {"identity": manifest.identity, "num": manifest.num},
                "teacher": manifest.teacher.hash,
                "ode": to_plain(manifest.ode),
                "train": self.train,
                "distill": self.distill,
            }
        )


def _grid(manifest: Manifest, num_steps: int) -> tuple[int, ...]:
    """The student's evenly spaced points, or all that the store keeps when no number of steps is given."""
    if num_steps == FROM_STORE:
        if len(manifest.kept) == manifest.ode.num_teacher_steps + 1:
            raise InputError("the store keeps every teacher point; say how many steps the student has with --num-steps")
        return manifest.kept
    return tuple(manifest.kept[position] for position in manifest.positions(num_steps))


def _recipe(plan: dict[str, Any]) -> str:
    """A fingerprint of everything that decides the weights, apart from the seed."""
    apart = {"train.seed", *HOUSEKEEPING}
    return fingerprint_of({name: value for name, value in flatten(plan).items() if name not in apart})


def _refuse_meaningless(config: StudentConfig, distill: DistillConfig) -> None:
    """InputError for an option that another one makes meaningless."""
    if config.mask is HistoryMask.DIAGONAL and config.history_blocks > 0:
        raise InputError(
            f"--history-blocks {config.history_blocks} has no meaning with --mask diagonal, which reads no history"
        )
    if config.num_steps == 1 and distill.own_history:
        raise InputError(f"--own-history {distill.own_history} has no meaning with one step, which has no history")
