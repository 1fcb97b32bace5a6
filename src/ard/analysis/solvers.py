"""What a teacher's solver leaves of the error for its steps: each solver and number of steps against many steps."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ard.core.types import Labels, Latents
from ard.diffusion.process import Solver
from ard.diffusion.spacing import TimeSpacing
from ard.reporting.table import as_text
from ard.teacher.teacher import Guidance, Ode, Teacher, plan_ode, solve_pf_ode

REFERENCE = Solver.DPMPP_2M  # The one of second order that both diffusions have.


@dataclass(frozen=True, kw_only=True)
class SolverRow:
    """One solver with one number of steps."""

    solver: Solver
    num_teacher_steps: int
    nfe: int
    error: float
    """Norm of the difference to the reference's images, relative to theirs."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """The noises and labels that all start from."""

    noise: Latents
    label: Labels
    batch_size: int


def solver_rows(
    teacher: Teacher,
    starts: Starts,
    *,
    solvers: Sequence[Solver],
    steps: Sequence[int],
    reference_steps: int,
    guidance: Guidance,
    spacing: TimeSpacing | None = None,
    progress: Callable[[int], object],
) -> list[SolverRow]:
    """A row per solver and number of steps; the reference has the same guidance, and its own spacing.

    InputError for a solver that does not fit the teacher.
    """
    odes = [
        plan_ode(teacher, num_teacher_steps=count, guidance=guidance, solver=solver, spacing=spacing)
        for solver in solvers
        for count in steps
    ]
    fine = plan_ode(teacher, num_teacher_steps=reference_steps, guidance=guidance, solver=REFERENCE)
    wanted, rows = _images(teacher, starts, fine), []
    progress(1)
    for ode in odes:
        error = float((_images(teacher, starts, ode) - wanted).norm() / wanted.norm())
        rows.append(SolverRow(solver=ode.solver, num_teacher_steps=ode.num_teacher_steps, nfe=ode.nfe, error=error))
        progress(1)
    return rows


def solvers_table(rows: Sequence[SolverRow]) -> str:
    """The rows for people."""
    header = ["solver", "steps", "NFE", "relative error"]
    return as_text(header, [[one.solver, str(one.num_teacher_steps), str(one.nfe), f"{one.error:.4f}"] for one in rows])


def plain_rows(rows: Sequence[SolverRow]) -> list[dict[str, Any]]:
    """The rows as a CSV file holds them."""
    return [asdict(one) for one in rows]


def _images(teacher: Teacher, starts: Starts, ode: Ode) -> Latents:
    """Where the ODE ends."""
    last, size = ode.num_teacher_steps, starts.batch_size
    batches = zip(starts.noise.split(size), starts.label.split(size), strict=True)
    return torch.cat([solve_pf_ode(teacher, *batch, ode=ode, kept=(last,)).x_t[:, -1] for batch in batches])
