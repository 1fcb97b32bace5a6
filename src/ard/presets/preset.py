"""What a preset is: a whole run, from its teacher over the trajectories to a student."""

from dataclasses import dataclass, field, replace

from ard.diffusion.process import Diffusion, Solver
from ard.diffusion.timegrid import uniform_indices
from ard.methods.regression import DistillConfig
from ard.networks.transformer import TransformerConfig
from ard.student.history import HistoryMask
from ard.student.student import StateKind, StudentConfig
from ard.teacher.teacher import Guidance, Ode
from ard.training.loop import TrainConfig
from ard.trajectories.online import OnlineConfig

NUM_TEACHER_STEPS = 24  # Divisible by 1, 2, 3, 4, 6, 8 and 12 student steps.
FROM_STORE = -1  # num_steps: as many as the store was collected for.
ONLINE = OnlineConfig(num_teacher_steps=NUM_TEACHER_STEPS)


@dataclass(frozen=True, kw_only=True)
class TeacherPreset:
    """The teacher that a run is for."""

    network: TransformerConfig
    diffusion: Diffusion
    command: str
    """The `ard` command that makes its folder, without --out."""
    prompts: str | None = None
    """The `ard` command that encodes its prompts, without --out, for a teacher that reads text."""


@dataclass(frozen=True, kw_only=True)
class CollectPreset:
    """How the trajectories are made: options of `ard collect` by their names, with its defaults."""

    num: int = 3000
    num_teacher_steps: int = NUM_TEACHER_STEPS
    guidance: Guidance = field(default_factory=Guidance)
    solver: Solver | None = None
    num_steps: int = 4
    grid: tuple[int, ...] = ()
    states: tuple[StateKind, ...] = (StateKind.X_T,)

    @property
    def kept(self) -> tuple[int, ...]:
        """The points that are stored, as indices of the teacher's grid."""
        return self.grid or uniform_indices(self.num_teacher_steps, self.num_steps)

    def ode(self, diffusion: Diffusion) -> Ode:
        """How the teacher's ODE is solved."""
        times = diffusion.teacher_times(self.num_teacher_steps)
        return Ode(times=times, solver=self.solver or diffusion.default_solver, guidance=self.guidance)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A whole run: the teacher, its trajectories, the student and how that is trained."""

    about: str
    """What it reproduces, in a line."""
    teacher: TeacherPreset
    collect: CollectPreset
    student: StudentConfig
    train: TrainConfig
    distill: DistillConfig = field(default_factory=DistillConfig)
    grid: tuple[int, ...] = ()
    """The student's points as indices of teacher steps, noise first; empty: evenly spaced."""
    adversarial: bool = False
    """Whether the loss is R + D."""
    discriminator: str = "heads"
    """A row of DISCRIMINATORS."""
    start: str | None = None
    """The preset whose student this one goes on from; None: from the teacher."""

    @property
    def online(self) -> OnlineConfig:
        """How the teacher solves its trajectories while the student trains: as they would be collected."""
        steps, guidance = self.collect.num_teacher_steps, self.collect.guidance
        return replace(ONLINE, num_teacher_steps=steps, guidance=guidance, solver=self.collect.solver)

    @property
    def whole_student(self) -> StudentConfig:
        """The student with S filled in where the store decides it."""
        num_steps = self.student.num_steps
        if num_steps == FROM_STORE:
            num_steps = len(self.grid or self.collect.kept) - 1
        return replace(self.student, num_steps=num_steps)


def without_history(student: StudentConfig) -> StudentConfig:
    """The same student reading itself only (M1): step distillation."""
    return replace(student, mask=HistoryMask.DIAGONAL, history_blocks=0)
