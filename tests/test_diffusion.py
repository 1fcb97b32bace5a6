"""The noise processes, their conversions and one solver step, against closed forms and independent arithmetic."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from ard.core.errors import InputError
from ard.diffusion.process import (
    Diffusion,
    DiffusionKind,
    Extrapolation,
    FlowClock,
    Solver,
    check_solver,
    ddim_step,
    solver_output,
)
from ard.diffusion.spacing import TimeSpacing

VP, FLOW = DiffusionKind.VP, DiffusionKind.FLOW
KINDS = (VP, FLOW)


def latents(seed: int, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full(value: float, rows: int = 4) -> torch.Tensor:
    return torch.full((rows,), value, dtype=torch.float64)


def some_times(diffusion: Diffusion) -> torch.Tensor:
    return torch.tensor([1.0, 0.7, 0.3, 0.001], dtype=torch.float64) * diffusion.max_time


@pytest.mark.parametrize("kind", KINDS)
def test_time_zero_is_the_clean_image_exactly(kind: DiffusionKind) -> None:
    diffusion, x_0 = Diffusion(kind=kind), latents(0)
    assert torch.equal(diffusion.add_noise(x_0, latents(1), full(0.0)), x_0)


def test_the_greatest_time_is_nearly_pure_noise_for_vp_and_exactly_for_flow() -> None:
    noise = latents(1)
    flow, vp = Diffusion(kind=FLOW), Diffusion(kind=VP)
    assert torch.equal(flow.add_noise(latents(0), noise, full(flow.max_time)), noise)
    alpha, sigma = vp.alpha_sigma(full(vp.max_time))
    assert 0 < alpha[0] < 0.01
    assert sigma[0] > 0.9999


def test_alpha_bar_is_the_product_of_one_minus_beta() -> None:
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    t = np.array([1, 2, 37, 500, 999, 1000])
    alpha, sigma = Diffusion(kind=VP).alpha_sigma(torch.from_numpy(t).double())
    np.testing.assert_allclose(alpha, np.exp(log_alpha_bar[t - 1] / 2), rtol=1e-10)
    np.testing.assert_allclose(sigma, np.sqrt(-np.expm1(log_alpha_bar[t - 1])), rtol=1e-10)


def test_the_betas_ends_are_options() -> None:
    diffusion = Diffusion(kind=VP, num_train_steps=2, beta_start=0.5, beta_end=0.75)
    alpha, _ = diffusion.alpha_sigma(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(alpha**2, torch.tensor([1.0, 0.5, 0.125], dtype=torch.float64))


@pytest.mark.parametrize(("beta_start", "beta_end"), [(0.0, 0.02), (-0.1, 0.02), (0.03, 0.02), (1e-4, 1.0)])
def test_betas_that_make_no_noise_process_are_refused(beta_start: float, beta_end: float) -> None:
    with pytest.raises(InputError, match=f"beta_start {beta_start} and beta_end {beta_end}"):
        Diffusion(kind=VP, beta_start=beta_start, beta_end=beta_end)


def test_a_diffusion_without_times_is_refused() -> None:
    with pytest.raises(InputError, match="num_train_steps is 0"):
        Diffusion(num_train_steps=0)


def test_vp_preserves_the_variance() -> None:
    alpha, sigma = Diffusion(kind=VP).alpha_sigma(torch.arange(1001, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_keep_the_dtype_of_the_time(kind: DiffusionKind, dtype: torch.dtype) -> None:
    values = Diffusion(kind=kind).alpha_sigma(torch.ones(3, dtype=dtype))
    assert [value.dtype for value in values] == [dtype, dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_split_undoes_add_noise_given_the_target(kind: DiffusionKind) -> None:
    diffusion, x_0, noise = Diffusion(kind=kind), latents(0), latents(1)
    t = some_times(diffusion)
    x_0_hat, noise_hat = diffusion.split(diffusion.add_noise(x_0, noise, t), diffusion.target(x_0, noise), t)
    torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-11)
    torch.testing.assert_close(noise_hat, noise, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_any_output_splits_into_parts_that_add_up_to_x(kind: DiffusionKind) -> None:
    diffusion, x, output = Diffusion(kind=kind), latents(0), latents(1)
    t = some_times(diffusion)
    torch.testing.assert_close(diffusion.add_noise(*diffusion.split(x, output, t), t), x, rtol=0, atol=1e-12)


def test_the_target_is_the_noise_for_vp_and_the_velocity_for_flow() -> None:
    x_0, noise = latents(0), latents(1)
    assert torch.equal(Diffusion(kind=VP).target(x_0, noise), noise)
    assert torch.equal(Diffusion(kind=FLOW).target(x_0, noise), noise - x_0)


def test_ddim_on_flow_is_eulers_step() -> None:
    diffusion, x, v = Diffusion(kind=FLOW), latents(0), latents(1)
    t, t_next = some_times(diffusion), some_times(diffusion) / 3
    euler = x + (t_next - t).view(-1, 1, 1, 1) * v
    torch.testing.assert_close(ddim_step(diffusion, x, v, t, t_next), euler, rtol=0, atol=1e-14)


def test_ddim_on_vp_is_the_published_formula() -> None:
    diffusion, x, eps = Diffusion(kind=VP), latents(0), latents(1)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    now, after = alpha_bar[600 - 1], alpha_bar[200 - 1]
    x_0_hat = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
    wanted = np.sqrt(after) * x_0_hat + np.sqrt(1 - after) * eps  # Eq. 12 of Song et al. (2021) with eta = 0.
    torch.testing.assert_close(ddim_step(diffusion, x, eps, full(600), full(200)), wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_the_true_target_lands_on_the_forward_process(kind: DiffusionKind) -> None:
    diffusion, x_0, noise = Diffusion(kind=kind), latents(0), latents(1)
    t, t_next = full(diffusion.max_time), full(0.4 * diffusion.max_time)
    x = diffusion.add_noise(x_0, noise, t)
    landed = ddim_step(diffusion, x, diffusion.target(x_0, noise), t, t_next)
    torch.testing.assert_close(landed, diffusion.add_noise(x_0, noise, t_next), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_to_time_zero_returns_the_clean_estimate(kind: DiffusionKind) -> None:
    diffusion, x, output = Diffusion(kind=kind), latents(0), latents(1)
    t = full(0.5 * diffusion.max_time)
    assert torch.equal(ddim_step(diffusion, x, output, t, full(0.0)), diffusion.split(x, output, t)[0])


def test_rows_may_have_different_times() -> None:
    diffusion, x, output = Diffusion(kind=VP), latents(0), latents(1)
    t, t_next = torch.tensor([1000.0, 500, 20, 1]).double(), torch.tensor([900.0, 3, 10, 0]).double()
    together = ddim_step(diffusion, x, output, t, t_next)
    rows = [slice(row, row + 1) for row in range(4)]
    alone = torch.cat([ddim_step(diffusion, x[row], output[row], t[row], t_next[row]) for row in rows])
    assert torch.equal(together, alone)


def test_heun_averages_the_slopes_at_both_ends() -> None:
    diffusion, x = Diffusion(kind=FLOW), latents(0)

    def slope(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.sin() * (1 + t).view(-1, 1, 1, 1)

    output = solver_output(slope, diffusion, x, full(0.8), full(0.5), solver=Solver.HEUN)
    at_end = slope(x - 0.3 * slope(x, full(0.8)), full(0.5))
    torch.testing.assert_close(output, (slope(x, full(0.8)) + at_end) / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("solver", "calls"), [(one, 2 if one is Solver.HEUN else 1) for one in Solver])
def test_a_solver_calls_the_network_once_or_twice(solver: Solver, calls: int) -> None:
    times: list[float] = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(float(t[0]))
        return x

    solver_output(denoise, Diffusion(kind=FLOW), latents(0), full(0.8), full(0.5), solver=solver)
    assert times == [0.8, 0.5][:calls]


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_for_a_clean_estimate_splits_into_it(kind: DiffusionKind) -> None:
    diffusion, x, x_0_hat = Diffusion(kind=kind), latents(0), latents(1)
    t = some_times(diffusion)[:3].repeat(2)[:4].clamp(min=1 if kind is VP else 0.01)
    output = diffusion.output_for(x, x_0_hat, t)
    torch.testing.assert_close(diffusion.split(x, output, t)[0], x_0_hat, rtol=0, atol=1e-11)


def toy_denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (x + t.view(-1, 1, 1, 1) / 500).sin()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' with this numpy.
@pytest.mark.parametrize("count", [2, 5, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_extrapolated_steps_are_those_of_diffusers_dpm_solver(kind: DiffusionKind, count: int) -> None:
    """Also for flow, on our times in place of its own: its first lambda is minus infinity, as ours."""
    diffusion = Diffusion(kind=kind)
    scheduler, times = make_dpm_solver(diffusion, count)
    x, extrapolate = latents(0), Extrapolation(diffusion)
    theirs = x.float()
    for start, end, timestep in zip(times[:-1], times[1:], scheduler.timesteps, strict=True):
        network_output = toy_denoiser(theirs, full(start).float())
        theirs = scheduler.step(network_output, timestep, theirs).prev_sample
        output = extrapolate(x, toy_denoiser(x, full(start)), full(start), full(end))
        x = ddim_step(diffusion, x, output, full(start), full(end))
        torch.testing.assert_close(x.float(), theirs, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def make_dpm_solver(diffusion: Diffusion, count: int) -> tuple[Any, tuple[float, ...]]:
    """diffusers' second-order DPM-Solver++ on our teacher's times, and these times."""
    schedulers = pytest.importorskip("diffusers.schedulers")
    flow, times = diffusion.kind is FLOW, diffusion.teacher_times(count)
    scheduler = schedulers.DPMSolverMultistepScheduler(
        beta_schedule="linear",
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        prediction_type="flow_prediction" if flow else "epsilon",
        use_flow_sigmas=flow,
    )
    if flow:
        scheduler.set_timesteps(count)
        scheduler.sigmas, scheduler.timesteps = torch.tensor(times), 1000 * torch.tensor(times[:-1])
    else:
        scheduler.set_timesteps(timesteps=[int(t - 1) for t in times[:-1]])
    return scheduler, times


@pytest.mark.parametrize("kind", KINDS)
def test_extrapolation_is_first_order_at_both_ends(kind: DiffusionKind) -> None:
    diffusion, extrapolate, x = Diffusion(kind=kind), Extrapolation(Diffusion(kind=kind)), latents(0)
    first, second, third = latents(1), latents(2), latents(3)
    start, middle, late = (full(round(part * diffusion.max_time, 1)) for part in (1.0, 0.6, 0.2))
    assert torch.equal(extrapolate(x, first, start, middle), first)
    led_on = extrapolate(x, second, middle, late)
    assert led_on.isfinite().all()
    assert torch.allclose(led_on, second) == (kind is FLOW), "flow's lambda comes from minus infinity"
    torch.testing.assert_close(extrapolate(x, third, late, full(0.0)), third)


def test_25_vp_steps_have_dits_spacing() -> None:
    wanted = [round(k * 999 / 24) + 1 for k in reversed(range(25))]
    assert list(Diffusion(kind=VP).teacher_times(25)) == [*wanted, 0]


@pytest.mark.parametrize(
    ("spacing", "count", "wanted"),
    [
        (TimeSpacing.LEADING, 4, [751, 501, 251, 1, 0]),
        (TimeSpacing.LEADING, 3, [667, 334, 1, 0]),
        (TimeSpacing.TRAILING, 4, [1000, 750, 500, 250, 0]),
        (TimeSpacing.TRAILING, 3, [1000, 667, 333, 0]),
        (TimeSpacing.LEADING, 1, [1000, 0]),  # From pure noise, whatever the spacing.
    ],
)
def test_vp_times_may_lead_or_trail(spacing: TimeSpacing, count: int, wanted: list[int]) -> None:
    assert list(Diffusion(kind=VP, spacing=spacing).teacher_times(count)) == wanted


def test_times_may_be_even_in_lambda() -> None:
    diffusion = Diffusion(kind=VP, spacing=TimeSpacing.LOG_SNR)
    times = diffusion.teacher_times(12)
    assert (times[0], times[-2:]) == (1000, (1, 0))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    values = np.log(alpha_bar / (1 - alpha_bar))[np.array(times[:-1], dtype=int) - 1] / 2
    np.testing.assert_allclose(values, diffusion.lambda_at(torch.tensor(times[:-1], dtype=torch.float64)), rtol=1e-9)
    steps = np.diff(values)[:-2]  # The last two are of single times: there is nothing between.
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)


@pytest.mark.parametrize("count", [2, 5, 48, 250, 999, 1000])
def test_times_even_in_lambda_fall_strictly_however_many(count: int) -> None:
    times = Diffusion(kind=VP, spacing=TimeSpacing.LOG_SNR).teacher_times(count)
    assert len(times) == count + 1
    assert (times[0], times[-2], times[-1]) == (1000, 1, 0)
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_is_infinite_where_there_is_no_signal_or_no_noise(kind: DiffusionKind) -> None:
    diffusion = Diffusion(kind=kind)
    start, middle, end = diffusion.lambda_at(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64) * diffusion.max_time)
    assert end == np.inf
    assert (start == -np.inf) == (kind is FLOW)
    assert start < middle < end


@pytest.mark.parametrize(("clock", "fed"), [(FlowClock.SCALED, 300), (FlowClock.PLAIN, 0.3), (FlowClock.REVERSED, 0.7)])
def test_a_flow_network_is_fed_the_time_of_its_clock(clock: FlowClock, fed: float) -> None:
    assert Diffusion(kind=FLOW, clock=clock).network_time(full(0.3)).tolist() == pytest.approx(full(fed).tolist())


@pytest.mark.parametrize("num_teacher_steps", [1, 2, 7, 25, 1000])
def test_flow_times_are_uniform_from_one_to_exactly_zero(num_teacher_steps: int) -> None:
    times = Diffusion(kind=FLOW).teacher_times(num_teacher_steps)
    np.testing.assert_allclose(times, np.linspace(1, 0, num_teacher_steps + 1), rtol=0, atol=1e-15)
    assert times[0] == 1
    assert times[-1] == 0


@pytest.mark.parametrize("num_teacher_steps", [1, 2, 3, 25, 250, 999, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_times_fall_strictly_from_pure_noise_to_the_image(kind: DiffusionKind, num_teacher_steps: int) -> None:
    diffusion = Diffusion(kind=kind)
    times = diffusion.teacher_times(num_teacher_steps)
    assert len(times) == num_teacher_steps + 1
    assert (times[0], times[-1]) == (diffusion.max_time, 0)
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("num_teacher_steps", [0, -3, 1001])
@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_number_of_teacher_steps_is_named(kind: DiffusionKind, num_teacher_steps: int) -> None:
    with pytest.raises(InputError, match=rf"^{num_teacher_steps} teacher steps.*1000"):
        Diffusion(kind=kind).teacher_times(num_teacher_steps)


def test_the_networks_time_counts_vp_from_zero_and_scales_flow() -> None:
    assert Diffusion(kind=VP).network_time(torch.tensor([1.0, 1000.0])).tolist() == [0, 999]
    assert Diffusion(kind=FLOW).network_time(torch.tensor([0.0, 0.25, 1.0])).tolist() == [0, 250, 1000]


def test_vp_training_times_are_every_noisy_time_and_no_other() -> None:
    diffusion = Diffusion(kind=VP, num_train_steps=10)
    t = diffusion.sample_times(20_000, torch.Generator().manual_seed(0))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == list(range(1, 11))
    assert counts.float().div(20_000).sub(0.1).abs().max() < 0.01


def test_flow_training_times_lie_in_the_unit_interval_and_three_percent_are_one() -> None:
    t = Diffusion(kind=FLOW).sample_times(40_000, torch.Generator().manual_seed(0))
    assert t.min() >= 0
    assert t.max() == 1
    assert abs(float((t == 1).double().mean()) - 0.03) < 0.004


@pytest.mark.parametrize(("at", "tolerance"), [(-5.0, 2e-4), (-1.0, 4e-3), (0.0, 4e-3), (1.0, 4e-3), (5.0, 2e-4)])
def test_flow_training_times_are_logit_normal_with_a_uniform_tenth(at: float, tolerance: float) -> None:
    t = Diffusion(kind=FLOW).sample_times(400_000, torch.Generator().manual_seed(0))
    below = float((torch.logit(t[t < 1].double()) < at).double().mean())
    normal, uniform = NormalDist(sigma=1.2).cdf(at), 1 / (1 + np.exp(-at))
    assert below == pytest.approx((0.87 * normal + 0.10 * uniform) / 0.97, abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_training_times_are_a_function_of_the_generator(kind: DiffusionKind) -> None:
    first, again, other = (
        Diffusion(kind=kind).sample_times(64, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


MULTISTEP = {(VP, Solver.DPMPP_2M), (FLOW, Solver.DPMPP_2M)}
FITTING = {(VP, Solver.DDIM), (FLOW, Solver.EULER), (FLOW, Solver.HEUN), *MULTISTEP}


@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("kind", KINDS)
def test_only_fitting_solvers_pass_the_check(kind: DiffusionKind, solver: Solver) -> None:
    if (kind, solver) in FITTING:
        check_solver(Diffusion(kind=kind), solver)
        return
    with pytest.raises(InputError, match=rf"solver {solver} does not fit the diffusion {kind}"):
        check_solver(Diffusion(kind=kind), solver)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_solver_fits(kind: DiffusionKind) -> None:
    diffusion = Diffusion(kind=kind)
    check_solver(diffusion, diffusion.default_solver)
