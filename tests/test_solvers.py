"""The comparison of solvers: errors against many steps, what they cost, and what the command prints."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ard import cli
from ard.analysis.solvers import SolverRow, Starts, solver_rows
from ard.core.errors import InputError
from ard.diffusion.process import DiffusionKind, Solver
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode

MakeTeacher = Callable[..., Teacher]


def rows_of(
    teacher: Teacher, solvers: list[Solver], steps: list[int], *, batch_size: int = 3, reference_steps: int = 200
) -> list[SolverRow]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    return solver_rows(
        teacher,
        Starts(noise=noise, label=torch.tensor([4, 1, 0]), batch_size=batch_size),
        solvers=solvers,
        steps=steps,
        reference_steps=reference_steps,
        guidance=Guidance(cfg_scale=1.2),
        progress=lambda _: None,
    )


def test_solvers_of_both_orders_approach_the_reference(make_teacher: MakeTeacher) -> None:
    rows = rows_of(make_teacher(), [Solver.EULER, Solver.HEUN, Solver.DPMPP_2M], [10, 40])
    assert [(one.solver, one.num_teacher_steps, one.nfe) for one in rows] == [
        ("euler", 10, 20),
        ("euler", 40, 80),
        ("heun", 10, 40),
        ("heun", 40, 160),
        ("dpmpp_2m", 10, 20),
        ("dpmpp_2m", 40, 80),
    ]
    errors = [one.error for one in rows]
    assert all(fine < 0.6 * coarse for coarse, fine in zip(errors[::2], errors[1::2], strict=True))
    assert errors[3] < errors[1]
    assert errors[5] < errors[1]


def test_an_error_is_the_relative_norm_of_the_difference_whatever_the_batch(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher(DiffusionKind.VP)
    (together,) = rows_of(teacher, [Solver.DDIM], [5], reference_steps=20)
    (apart,) = rows_of(teacher, [Solver.DDIM], [5], reference_steps=20, batch_size=2)
    noise = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = [
        solve_pf_ode(
            teacher,
            noise,
            torch.tensor([4, 1, 0]),
            ode=plan_ode(teacher, num_teacher_steps=steps, guidance=Guidance(cfg_scale=1.2), solver=solver),
            kept=(steps,),
        ).x_t[:, -1]
        for solver, steps in ((Solver.DPMPP_2M, 20), (Solver.DDIM, 5))
    ]
    wanted = float((images[1] - images[0]).norm() / images[0].norm())
    assert together.error == pytest.approx(wanted, rel=1e-10)
    assert apart.error == pytest.approx(wanted, rel=1e-6)


def test_the_reference_itself_has_no_error(make_teacher: MakeTeacher) -> None:
    (row,) = rows_of(make_teacher(), [Solver.DPMPP_2M], [20], reference_steps=20)
    assert row.error == 0


def test_a_solver_of_another_diffusion_is_refused(make_teacher: MakeTeacher) -> None:
    with pytest.raises(InputError, match="solver ddim does not fit the diffusion flow"):
        rows_of(make_teacher(), [Solver.DDIM], [5])


def test_the_command_prints_and_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teach = ["--data", "digits", "--model", "tiny/4", "--iterations", "2", "--device", "cpu"]
    assert cli.run(["teach", *teach, "--out", str(tmp_path / "teacher")]) == 0
    words = ["--solvers", "euler,dpmpp_2m", "--steps", "2,4", "--reference-steps", "8", "--num", "2"]
    arguments = ["--teacher", str(tmp_path / "teacher"), *words, "--device", "cpu"]
    assert cli.run(["analyze", "solvers", *arguments, "--out", str(tmp_path / "out")]) == 0
    assert "relative error" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "solvers.csv").read_text().splitlines()))
    assert [(row["solver"], row["nfe"]) for row in rows] == [
        ("euler", "4"),
        ("euler", "8"),
        ("dpmpp_2m", "4"),
        ("dpmpp_2m", "8"),
    ]
