"""The teacher: its PF-ODE against the analytic solution, its guidance, its trajectories and both kinds of state."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError
from ard.diffusion.process import Diffusion, DiffusionKind, Solver
from ard.diffusion.spacing import TimeSpacing
from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.teacher import Guidance, Ode, Solution, Teacher, noise_for_seeds, plan_ode, solve_pf_ode

MakeTeacher = Callable[..., Teacher]
MakeLatents = Callable[..., Tensor]

VP, FLOW = DiffusionKind.VP, DiffusionKind.FLOW
UNGUIDED = Guidance(cfg_scale=1.0)
LABEL = torch.tensor([4, 1, 0])
MULTISTEP = [(VP, Solver.DPMPP_2M), (FLOW, Solver.DPMPP_2M)]
SOLVERS = [(VP, Solver.DDIM), (FLOW, Solver.EULER), (FLOW, Solver.HEUN), *MULTISTEP]

every_solver = pytest.mark.parametrize(("kind", "solver"), SOLVERS)


# Closed forms: for x_0 ~ N(0, s^2) the exact denoiser is linear and the PF-ODE scales its state.


class GaussianDenoiser(Transformer):
    """The exact prediction of eps or v for data from N(0, std^2)."""

    def __init__(self, diffusion: Diffusion, std: float) -> None:
        super().__init__(
            TransformerConfig(width=8, depth=1, num_heads=1, patch_size=4, latent_size=4, channels=1, num_classes=1)
        )
        self.diffusion, self.std = diffusion, std
        self.double()

    def forward(self, x: Tensor, t: Tensor, _label: Tensor) -> Tensor:
        t = t + 1 if self.diffusion.kind is VP else t / 1000
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in self.diffusion.alpha_sigma(t))
        variance = (alpha * self.std) ** 2 + sigma**2
        noise_hat, x_0_hat = sigma * x / variance, alpha * self.std**2 * x / variance
        return noise_hat if self.diffusion.kind is VP else noise_hat - x_0_hat


def scale_at(diffusion: Diffusion, times: tuple[float, ...], std: float) -> Tensor:
    """The standard deviation of x_t, to which the ODE's state is proportional."""
    alpha, sigma = diffusion.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    return ((alpha * std) ** 2 + sigma**2).sqrt()


def gaussian_errors(kind: DiffusionKind, solver: Solver, std: float, num_teacher_steps: int) -> tuple[Tensor, Ode]:
    """The solver's error at every point, relative to the analytic solution."""
    diffusion = Diffusion(kind=kind)
    teacher = Teacher(GaussianDenoiser(diffusion, std), diffusion, "none", "0" * 16)
    ode = plan_ode(teacher, num_teacher_steps=num_teacher_steps, guidance=UNGUIDED, solver=solver)
    noise = noise_for_seeds(range(2), (1, 4, 4)).double()
    every = tuple(range(num_teacher_steps + 1))
    solved = solve_pf_ode(teacher, noise, torch.zeros(2, dtype=torch.long), ode=ode, kept=every).x_t
    scale = scale_at(diffusion, ode.times, std)
    exact = noise.unsqueeze(1) * (scale / scale[0]).view(-1, 1, 1, 1)
    return ((solved - exact) / exact).abs().amax(dim=(0, 2, 3, 4)), ode


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize(("kind", "solver", "order"), [(*SOLVERS[0], 1), (*SOLVERS[1], 1), (*SOLVERS[2], 2)])
def test_the_solver_meets_the_analytic_solution_at_its_order(
    kind: DiffusionKind, solver: Solver, order: int, std: float
) -> None:
    num_steps = np.array([20, 40, 80, 160])
    errors = [float(gaussian_errors(kind, solver, std, int(n))[0][-1]) for n in num_steps]
    assert errors[-1] < 0.05
    slope = np.polyfit(np.log(1 / num_steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize(("kind", "steps"), [(VP, (20, 40)), (FLOW, (240, 600))])
def test_the_multistep_solver_has_second_order(kind: DiffusionKind, steps: tuple[int, ...], std: float) -> None:
    """Flow's steps are even in time and not in lambda, which costs a logarithm at both ends: so many steps there."""
    errors = [float(gaussian_errors(kind, Solver.DPMPP_2M, std, n)[0][-1]) for n in steps]
    slope = np.polyfit(np.log(1 / np.array(steps)), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.2)


@every_solver
def test_every_kept_point_lies_on_the_analytic_path(kind: DiffusionKind, solver: Solver) -> None:
    coarse, _ = gaussian_errors(kind, solver, 0.5, 50)
    fine, _ = gaussian_errors(kind, solver, 0.5, 200)
    assert fine.max() < 0.05
    assert coarse.max() > 2.5 * fine.max()


@every_solver
def test_the_image_of_unit_gaussian_data_is_the_noise_itself(kind: DiffusionKind, solver: Solver) -> None:
    errors, _ = gaussian_errors(kind, solver, 1.0, 50)
    assert errors[0] == 0
    assert errors[-1] < 0.04


@pytest.mark.parametrize("kind", DiffusionKind)
def test_the_clean_estimates_are_the_posterior_means_of_the_points_before(kind: DiffusionKind) -> None:
    diffusion = Diffusion(kind=kind)
    teacher = Teacher(GaussianDenoiser(diffusion, 0.5), diffusion, "none", "0" * 16)
    ode = plan_ode(teacher, num_teacher_steps=6, guidance=UNGUIDED)
    noise = noise_for_seeds(range(2), (1, 4, 4)).double()
    solution = solve_pf_ode(teacher, noise, torch.zeros(2, dtype=torch.long), ode=ode, kept=tuple(range(7)))
    alpha, _ = diffusion.alpha_sigma(torch.tensor(ode.times, dtype=torch.float64))
    gain = alpha * 0.25 / scale_at(diffusion, ode.times, 0.5) ** 2
    wanted = solution.x_t[:, :-1] * gain[:-1].view(-1, 1, 1, 1)
    torch.testing.assert_close(solution.x_0_hat[:, 1:], wanted, rtol=1e-8, atol=1e-10)


# Guidance.


def parts(teacher: Teacher, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional prediction, each from a forward of its own."""
    time, null = teacher.diffusion.network_time(t), torch.full_like(LABEL, 5)
    return teacher.network(x, time, LABEL), teacher.network(x, time, null)


def count_forwards(network: Transformer) -> list[int]:
    """Appends to its result the number of rows of every forward from now on."""
    rows: list[int] = []
    network.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    return rows


def some_input(teacher: Teacher, make_latents: MakeLatents) -> tuple[Tensor, Tensor]:
    return make_latents(3), torch.full((3,), 0.6 * teacher.diffusion.max_time, dtype=torch.float64)


@pytest.mark.parametrize("kind", DiffusionKind)
@pytest.mark.parametrize("cfg_scale", [1.5, 4.0])
def test_guidance_adds_the_scaled_difference_to_the_unconditional_prediction(
    kind: DiffusionKind, cfg_scale: float, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher(kind)
    x, t = some_input(teacher, make_latents)
    cond, uncond = parts(teacher, x, t)
    assert (cond - uncond).abs().max() > 1e-2
    guided = teacher.denoise(LABEL, Guidance(cfg_scale=cfg_scale))(x, t)
    torch.testing.assert_close(guided, uncond + cfg_scale * (cond - uncond), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("cfg_channels", "guided_channels"), [(0, 0), (1, 1), (2, 2), (-1, 2)])
def test_only_the_first_channels_are_guided_and_the_rest_is_conditional(
    cfg_channels: int, guided_channels: int, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher()
    x, t = some_input(teacher, make_latents)
    cond, uncond = parts(teacher, x, t)
    guided = teacher.denoise(LABEL, Guidance(cfg_scale=3.0, cfg_channels=cfg_channels))(x, t)
    wanted = torch.cat([(uncond + 3 * (cond - uncond))[:, :guided_channels], cond[:, guided_channels:]], dim=1)
    torch.testing.assert_close(guided, wanted, rtol=0, atol=1e-11)


def test_a_scale_of_one_is_the_conditional_prediction_in_one_plain_forward(
    make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher()
    x, t = some_input(teacher, make_latents)
    cond, _ = parts(teacher, x, t)
    rows = count_forwards(teacher.network)
    assert torch.equal(teacher.denoise(LABEL, UNGUIDED)(x, t), cond)
    assert rows == [3]


def test_both_halves_of_the_guidance_run_in_one_forward(make_teacher: MakeTeacher, make_latents: MakeLatents) -> None:
    teacher = make_teacher()
    rows = count_forwards(teacher.network)
    teacher.denoise(LABEL, Guidance(cfg_scale=2.0))(*some_input(teacher, make_latents))
    assert rows == [6]


@every_solver
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_the_nfe_is_the_number_of_rows_per_image_that_the_network_sees(
    kind: DiffusionKind, solver: Solver, cfg_scale: float, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher(kind)
    ode = plan_ode(teacher, num_teacher_steps=4, guidance=Guidance(cfg_scale=cfg_scale), solver=solver)
    rows = count_forwards(teacher.network)
    solve_pf_ode(teacher, make_latents(3), LABEL, ode=ode, kept=(0, 4))
    assert sum(rows) == 3 * ode.nfe


@pytest.mark.parametrize("kind", DiffusionKind)
def test_predictions_keep_the_precision_of_the_state(
    kind: DiffusionKind, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher(kind)
    teacher.network.float()
    x, t = some_input(teacher, make_latents)
    assert teacher.denoise(LABEL, Guidance(cfg_scale=2.0))(x, t).dtype == torch.float64


def test_the_multistep_solver_takes_vp_times_even_in_lambda_unless_told_otherwise(make_teacher: MakeTeacher) -> None:
    plan = functools.partial(plan_ode, make_teacher(VP), num_teacher_steps=8, guidance=UNGUIDED)
    even = Diffusion(kind=VP, spacing=TimeSpacing.LOG_SNR).teacher_times(8)
    assert plan(solver=Solver.DPMPP_2M).times == plan(solver=Solver.DDIM, spacing=TimeSpacing.LOG_SNR).times == even
    assert plan(solver=Solver.DPMPP_2M, spacing=TimeSpacing.LINSPACE).times == Diffusion(kind=VP).teacher_times(8)
    leading = replace(make_teacher(VP), diffusion=Diffusion(kind=VP, spacing=TimeSpacing.LEADING))
    ode = plan_ode(leading, num_teacher_steps=8, guidance=UNGUIDED)
    assert ode.times == leading.diffusion.teacher_times(8)


def test_a_flow_teacher_has_no_spacing_to_choose(make_teacher: MakeTeacher) -> None:
    with pytest.raises(InputError, match="spacing is trailing, and a flow teacher's times are its own"):
        plan_ode(make_teacher(), num_teacher_steps=4, guidance=UNGUIDED, spacing=TimeSpacing.TRAILING)


INTERVALS = {  # By kind, an interval and which of the 4 steps' times it holds.
    VP: [
        ((0.0, 1000.0), (1000, 667, 334, 1)),
        ((300.0, 700.0), (667, 334)),
        ((667.0, 667.0), (667,)),
        ((2.0, 9.0), ()),
    ],
    FLOW: [((0.0, 1.0), (1, 0.75, 0.5, 0.25)), ((0.3, 0.8), (0.75, 0.5)), ((0.5, 0.5), (0.5,)), ((0.6, 0.7), ())],
}


def interval_ode(teacher: Teacher, interval: tuple[float, float] | None, solver: Solver | None = None) -> Ode:
    """Four guided steps; an interval that holds none of them is refused by `plan_ode` only."""
    spacing = TimeSpacing.LINSPACE if teacher.diffusion.kind is VP else None
    guidance = Guidance(cfg_scale=2.0)
    ode = plan_ode(teacher, num_teacher_steps=4, guidance=guidance, solver=solver, spacing=spacing)
    return replace(ode, guidance=replace(ode.guidance, cfg_interval=interval))


@every_solver
@pytest.mark.parametrize("index", range(4))
def test_outside_its_interval_guidance_costs_one_row_and_the_nfe_counts_it(
    kind: DiffusionKind, solver: Solver, index: int, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher, (interval, inside) = make_teacher(kind), INTERVALS[kind][index]
    ode = interval_ode(teacher, interval, solver)
    rows = count_forwards(teacher.network)
    solve_pf_ode(teacher, make_latents(3), LABEL, ode=ode, kept=(0, 4))
    assert sum(rows) == 3 * ode.nfe
    if solver is not Solver.HEUN:
        assert rows == [6 if round(t, 2) in inside else 3 for t in ode.times[:-1]]


@pytest.mark.parametrize("kind", DiffusionKind)
def test_an_interval_of_all_times_is_plain_guidance_and_one_of_none_is_no_guidance(
    kind: DiffusionKind, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher, noise = make_teacher(kind), make_latents(3)
    plain = interval_ode(teacher, None)
    odes = {
        "plain": plain,
        "all": interval_ode(teacher, INTERVALS[kind][0][0]),
        "some": interval_ode(teacher, INTERVALS[kind][1][0]),
        "none": interval_ode(teacher, INTERVALS[kind][3][0]),
        "unguided": replace(plain, guidance=UNGUIDED),
    }
    ends = {name: solve_pf_ode(teacher, noise, LABEL, ode=ode, kept=(0, 4)).x_t for name, ode in odes.items()}
    assert torch.equal(ends["all"], ends["plain"])
    assert torch.equal(ends["none"], ends["unguided"])
    assert not torch.allclose(ends["some"], ends["plain"])
    assert not torch.allclose(ends["some"], ends["unguided"])


def test_an_intervals_ends_belong_to_it_whatever_the_rounding(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher()
    teacher.network.float()
    guidance = Guidance(cfg_scale=2.0, cfg_interval=(0.1, 0.3))  # The grid: 0.30000000000000004, 0.09999999999999998.
    ode = plan_ode(teacher, num_teacher_steps=10, guidance=guidance)
    rows = count_forwards(teacher.network)
    solve_pf_ode(teacher, noise_for_seeds(range(1), (2, 8, 8)), LABEL[:1], ode=ode, kept=(0, 10))
    assert rows == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert ode.nfe == 13


def test_guidance_without_an_interval_is_stored_as_before() -> None:
    assert to_plain(Guidance()) == {"cfg_scale": 1.5, "cfg_channels": None}
    interval = Guidance(cfg_interval=(0.25, 1.0))
    assert from_plain(Guidance, to_plain(interval), where="here") == interval


# Trajectories.


def solve(
    teacher: Teacher,
    noise: Tensor,
    label: Tensor,
    *,
    solver: Solver | None = None,
    num_teacher_steps: int = 6,
    kept: tuple[int, ...] | None = None,
) -> tuple[Solution, Ode]:
    ode = plan_ode(teacher, num_teacher_steps=num_teacher_steps, guidance=Guidance(cfg_scale=2.0), solver=solver)
    kept = kept if kept is not None else tuple(range(num_teacher_steps + 1))
    return solve_pf_ode(teacher, noise, label, ode=ode, kept=kept), ode


@every_solver
def test_both_kinds_of_states_start_with_the_noise_and_end_with_the_image(
    kind: DiffusionKind, solver: Solver, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    solution, _ = solve(make_teacher(kind), make_latents(3), LABEL, solver=solver)
    assert solution.x_t.shape == solution.x_0_hat.shape == (3, 7, 2, 8, 8)
    assert torch.equal(solution.x_t[:, 0], make_latents(3))
    assert torch.equal(solution.x_0_hat[:, 0], make_latents(3))
    assert torch.equal(solution.x_t[:, -1], solution.x_0_hat[:, -1])
    assert not torch.equal(solution.x_t[:, 3], solution.x_0_hat[:, 3])


@every_solver
def test_each_clean_estimate_is_the_x_0_on_the_line_through_two_neighbouring_states(
    kind: DiffusionKind, solver: Solver, make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    """Two states of one step are alpha x_0 + sigma noise with the same x_0 and noise: two equations, two unknowns."""
    solution, ode = solve(make_teacher(kind), make_latents(3), LABEL, solver=solver)
    times = torch.tensor(ode.times, dtype=torch.float64)
    alpha, sigma = (value.view(1, -1, 1, 1, 1) for value in Diffusion(kind=kind).alpha_sigma(times))
    x, x_next = solution.x_t[:, :-1], solution.x_t[:, 1:]
    determinant = alpha[:, 1:] * sigma[:, :-1] - alpha[:, :-1] * sigma[:, 1:]
    x_0 = (sigma[:, :-1] * x_next - sigma[:, 1:] * x) / determinant
    torch.testing.assert_close(solution.x_0_hat[:, 1:], x_0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kept", [(0, 6), (0, 2, 4, 6), (0, 1, 5, 6)])
def test_the_kept_points_are_those_of_the_whole_solution(
    kept: tuple[int, ...], make_teacher: MakeTeacher, make_latents: MakeLatents
) -> None:
    teacher = make_teacher()
    some, _ = solve(teacher, make_latents(3), LABEL, kept=kept)
    whole, _ = solve(teacher, make_latents(3), LABEL)
    assert torch.equal(some.x_t, whole.x_t[:, list(kept)])
    assert torch.equal(some.x_0_hat, whole.x_0_hat[:, list(kept)])


@every_solver
def test_a_trajectory_depends_on_its_seed_and_label_only(
    kind: DiffusionKind, solver: Solver, make_teacher: MakeTeacher
) -> None:
    teacher, label = make_teacher(kind), torch.arange(7) % 5
    teacher.network.float()
    together, _ = solve(teacher, noise_for_seeds(range(7), (2, 8, 8)), label, solver=solver)
    for seed in range(7):
        alone, _ = solve(teacher, noise_for_seeds(range(seed, seed + 1), (2, 8, 8)), label[[seed]], solver=solver)
        for first, second in zip(alone, together, strict=True):
            row = second[[seed]]
            torch.testing.assert_close(first, row, rtol=1e-4, atol=1e-4 * float(row.abs().max()))


def test_a_trajectory_changes_with_its_label(make_teacher: MakeTeacher, make_latents: MakeLatents) -> None:
    teacher, noise = make_teacher(), make_latents(3)
    first, other = (solve(teacher, noise, label)[0].x_t[:, -1] for label in (LABEL, LABEL.flip(0)))
    assert (first[0] - other[0]).abs().max() > 1e-2


def test_a_noise_is_its_seed_in_any_order_and_batch() -> None:
    together = noise_for_seeds(range(10, 17), (2, 8, 8))
    shuffled = noise_for_seeds(torch.tensor([16, 12, 10]), (2, 8, 8))
    assert torch.equal(shuffled, together[[6, 2, 0]])
    assert torch.equal(noise_for_seeds(range(13, 14), (2, 8, 8)), together[3:4])


def test_noises_of_different_seeds_are_independent_and_normal() -> None:
    noise = noise_for_seeds(range(200), (2, 8, 8)).flatten(1)
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    similar = (noise @ noise.T / noise.shape[1]).fill_diagonal_(0)
    assert similar.abs().max() < 6 / math.sqrt(noise.shape[1])


def test_drawing_a_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    noise_for_seeds(range(3), (2, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


# What is refused.


@pytest.mark.parametrize("cfg_scale", [0.5, 0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_no_number_from_one_on_is_refused(cfg_scale: float, make_teacher: MakeTeacher) -> None:
    with pytest.raises(InputError, match=rf"cfg_scale is {cfg_scale}.*1 means none"):
        plan_ode(make_teacher(), num_teacher_steps=4, guidance=Guidance(cfg_scale=cfg_scale))


@pytest.mark.parametrize("cfg_channels", [-2, 3])
def test_more_guided_channels_than_there_are_is_refused(cfg_channels: int, make_teacher: MakeTeacher) -> None:
    with pytest.raises(InputError, match=rf"cfg_channels is {cfg_channels}; the latents have 2"):
        plan_ode(make_teacher(), num_teacher_steps=4, guidance=Guidance(cfg_channels=cfg_channels))


@pytest.mark.parametrize("interval", [(0.7, 0.3), (-0.1, 0.5), (0.1, math.inf), (math.nan, 1.0)])
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"cfg_interval is .*the lower one first"):
        Guidance(cfg_interval=interval)


def test_a_stored_interval_of_three_times_is_refused() -> None:
    stored = {"cfg_scale": 1.5, "cfg_channels": -1, "cfg_interval": [0.1, 0.2, 0.3]}
    with pytest.raises(InputError, match=r"^here: cfg_interval is \[0.1, 0.2, 0.3\]; a list of 2 is expected"):
        from_plain(Guidance, stored, where="here")


@pytest.mark.parametrize(
    ("cfg_scale", "interval", "line"),
    [
        (1.0, (0.2, 0.8), "cfg_interval is 0.2 0.8, and cfg_scale is 1"),
        (2.0, (0.55, 0.6), "no step of the solver lies there; times run from 1 to 0"),
    ],
)
def test_an_interval_that_does_nothing_is_refused(
    cfg_scale: float, interval: tuple[float, float], line: str, make_teacher: MakeTeacher
) -> None:
    with pytest.raises(InputError, match=line):
        plan_ode(make_teacher(), num_teacher_steps=4, guidance=Guidance(cfg_scale=cfg_scale, cfg_interval=interval))


def test_a_solver_of_another_diffusion_is_refused(make_teacher: MakeTeacher) -> None:
    with pytest.raises(InputError, match="solver heun does not fit the diffusion vp; allowed: ddim"):
        plan_ode(make_teacher(VP), num_teacher_steps=4, guidance=UNGUIDED, solver=Solver.HEUN)


@pytest.mark.parametrize("kind", DiffusionKind)
def test_a_planned_run_takes_the_teachers_grid_and_default_solver(
    kind: DiffusionKind, make_teacher: MakeTeacher
) -> None:
    ode = plan_ode(make_teacher(kind), num_teacher_steps=4, guidance=UNGUIDED)
    assert ode.times == Diffusion(kind=kind).teacher_times(4)
    assert ode.num_teacher_steps == 4
    assert ode.solver is {VP: Solver.DDIM, FLOW: Solver.EULER}[kind]
