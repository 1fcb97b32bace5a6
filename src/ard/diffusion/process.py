"""The two diffusions: x_t = alpha(t) x_0 + sigma(t) noise, what their networks predict, and one solver step.

Time runs from `max_time` (noise) down to 0 (data, exactly: alpha = 1, sigma = 0).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ard.core.config import later
from ard.core.draws import normal, uniform
from ard.core.errors import InputError, require_at_least, require_at_most
from ard.core.types import Latents, Times
from ard.diffusion.spacing import TimeSpacing, flow_times, vp_times
from ard.diffusion.vp_table import BetaSchedule, alpha_sigma_at, vp_table

LEAST_ALPHA = 0.5  # Where `bounded_velocity` stops dividing by alpha.


class DiffusionKind(StrEnum):
    """Which noise process a teacher was trained on."""

    VP = "vp"  # Variance preserving, linear betas, eps-prediction: DiT (Peebles and Xie, 2023).
    FLOW = "flow"  # Rectified flow, velocity prediction: SiT (Ma et al., 2024).


class FlowClock(StrEnum):
    """What a flow network's time embedding is fed at our time t, 1 for noise and 0 for data."""

    SCALED = "scaled"  # t times num_train_steps: ours.
    PLAIN = "plain"  # t: REPA's (Yu et al., 2025).
    REVERSED = "reversed"  # 1 - t: SiT's code, whose time runs from noise to data.


class Solver(StrEnum):
    """How one step of the probability-flow ODE is taken."""

    DDIM = "ddim"  # First order, deterministic (Song et al., 2021): the paper's, for VP.
    EULER = "euler"  # First order, for flow. The same formula as DDIM.
    HEUN = "heun"  # Second order, two evaluations per step, for flow.
    DPMPP_2M = "dpmpp_2m"  # DPM-Solver++(2M), second order, one evaluation per step (Lu et al., 2022), for both.


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the sampler that came with an imported teacher solves its ODE, where that is not our default."""

    solver: Solver | None = None
    """None: DDIM for VP, Euler for flow."""
    steps_offset: int = 0
    """What is added to leading times."""
    strides: bool = False
    """Each step lands a whole stride below its time and not at the next one, as those of diffusers' DDIM do."""
    last_time: int = 0
    """Where the last step lands: at 0, the clean image, or at 1, the first noisy time."""
    clip: float | None = None
    """Clean estimates are cut to this range, -clip to clip."""
    shift: float = 1.0
    """Of a flow's times, with the spacing flow_match."""

    def __post_init__(self) -> None:
        """Refuse what no sampler does."""
        require_at_least(0, {"steps_offset": self.steps_offset, "last_time": self.last_time})
        if self.last_time > 1 or not self.shift > 0 or not (self.clip is None or self.clip > 0):
            told = f"last_time {self.last_time}, shift {self.shift} and clip {self.clip}"
            raise InputError(f"{told}; allowed: 0 or 1, and numbers above 0")


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A noise process and the quantity its network predicts, eps for VP and v = noise - x_0 for FLOW."""

    kind: DiffusionKind = DiffusionKind.FLOW
    num_train_steps: int = 1000
    """VP: the number of discrete times. FLOW: the factor from t in [0, 1] to the network's time input."""
    beta_start: float = 1e-4
    """VP: first beta (Ho et al., 2020)."""
    beta_end: float = 0.02
    """VP: last beta."""
    spacing: TimeSpacing = later(TimeSpacing.LINSPACE)
    """Which times the teacher's solver visits."""
    clock: FlowClock = later(FlowClock.SCALED)
    """FLOW: what the network's time embedding is fed."""
    beta_schedule: BetaSchedule = later(BetaSchedule.LINEAR)
    """VP: how beta goes from the first to the last."""
    sampler: Sampler = later(Sampler())
    """How the sampler that came with it solves the ODE."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no noise process."""
        require_at_least(1, {"num_train_steps": self.num_train_steps})
        require_at_most(1_000_000, {"num_train_steps": self.num_train_steps})
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"beta_start {self.beta_start} and beta_end {self.beta_end} must rise between 0 and 1")

    @property
    def max_time(self) -> float:
        """The time of pure noise: `num_train_steps` for VP, 1 for FLOW."""
        return float(self.num_train_steps) if self.kind is DiffusionKind.VP else 1.0

    @property
    def default_solver(self) -> Solver:
        """That of its own sampler: DDIM for VP and Euler for FLOW, unless it says otherwise."""
        return self.sampler.solver or self.first_order_solver

    @property
    def first_order_solver(self) -> Solver:
        """DDIM for VP, Euler for FLOW."""
        return Solver.DDIM if self.kind is DiffusionKind.VP else Solver.EULER

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        """The signal's and the noise's coefficient at `t`, in t's dtype."""
        if self.kind is DiffusionKind.FLOW:
            return 1 - t, t
        betas = (self.beta_schedule, self.num_train_steps, self.beta_start, self.beta_end)
        return alpha_sigma_at(t, *vp_table(betas, t.dtype, t.device))

    def lambda_at(self, t: Times) -> Times:
        """Half of the logarithm of the signal-to-noise ratio, log(alpha / sigma); infinite where one of them is 0."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha.log() - sigma.log()

    def network_time(self, t: Times) -> Times:
        """What the network's time embedding is fed. VP counts its 1000 noisy times from 0, as DiT does."""
        if self.kind is DiffusionKind.VP:
            return t - 1
        match self.clock:
            case FlowClock.SCALED:
                return t * self.num_train_steps
            case FlowClock.PLAIN:
                return t
            case FlowClock.REVERSED:
                return 1 - t

    def target(self, x_0: Latents, noise: Latents) -> Latents:
        """What the network should predict: eps for VP, v = noise - x_0 for FLOW."""
        return noise if self.kind is DiffusionKind.VP else noise - x_0

    def split(self, x: Latents, output: Latents, t: Times) -> tuple[Latents, Latents]:
        """The clean estimate and the noise estimate that the network's `output` at `x` implies."""
        alpha, sigma = (_per_row(value, x) for value in self.alpha_sigma(t))
        if self.kind is DiffusionKind.VP:
            return (x - sigma * output) / alpha, output
        return x - sigma * output, x + alpha * output

    def split_velocity(self, x: Latents, velocity: Latents, t: Times) -> tuple[Latents, Latents]:
        """The clean estimate and the noise estimate that a velocity at `x` implies, by which nothing is divided.

        VP: v = alpha noise - sigma x_0 (Salimans and Ho, 2022). FLOW: v = noise - x_0, its network's own output.
        """
        if self.kind is DiffusionKind.FLOW:
            return self.split(x, velocity, t)
        alpha, sigma = (_per_row(value, x) for value in self.alpha_sigma(t))
        return alpha * x - sigma * velocity, sigma * x + alpha * velocity

    def bounded_velocity(self, x: Latents, output: Latents, t: Times) -> Latents:
        """The velocity that the network's `output` at `x` implies, with its gain bounded near pure noise.

        VP: v = (eps - sigma x) / max(alpha, LEAST_ALPHA): the exact velocity where alpha is at least LEAST_ALPHA, and
        a shortened one below, where dividing by alpha (.006 at pure noise) would magnify every error of eps.
        """
        if self.kind is DiffusionKind.FLOW:
            return output
        alpha, sigma = (_per_row(value, x) for value in self.alpha_sigma(t))
        return (output - sigma * x) / alpha.clamp(min=LEAST_ALPHA)

    def noise_beside(self, x: Latents, x_0_hat: Latents, t: Times) -> Latents:
        """The noise estimate that belongs to a clean estimate at `x`: x = alpha x_0_hat + sigma noise; `t` above 0."""
        alpha, sigma = (_per_row(value, x) for value in self.alpha_sigma(t))
        return (x - alpha * x_0_hat) / sigma

    def output_for(self, x: Latents, x_0_hat: Latents, t: Times) -> Latents:
        """The network output at `x` that implies this clean estimate; `t` is above 0."""
        alpha, sigma = (_per_row(value, x) for value in self.alpha_sigma(t))
        return (x - (alpha if self.kind is DiffusionKind.VP else 1) * x_0_hat) / sigma

    def add_noise(self, x_0: Latents, noise: Latents, t: Times) -> Latents:
        """The forward process: x_t = alpha x_0 + sigma noise."""
        alpha, sigma = (_per_row(value, x_0) for value in self.alpha_sigma(t))
        return alpha * x_0 + sigma * noise

    def teacher_times(self, num_teacher_steps: int) -> tuple[float, ...]:
        """The num_teacher_steps + 1 times of an evenly spaced solver run, noise first, ending at 0.

        VP visits the discrete times that its spacing says, and ends with a step to the clean image.
        """
        if not 1 <= num_teacher_steps <= self.num_train_steps:
            raise InputError(f"{num_teacher_steps} teacher steps: allowed are 1 to {self.num_train_steps}")
        if self.kind is DiffusionKind.FLOW:
            shift = self.sampler.shift
            times = flow_times(self.spacing, num_teacher_steps, num_train_steps=self.num_train_steps, shift=shift)
        elif num_teacher_steps == 1:
            times = (self.max_time,)
        else:
            lambdas = self.lambda_at(torch.arange(1, self.num_train_steps + 1, dtype=torch.float64))
            times = vp_times(self.spacing, num_teacher_steps, lambdas=lambdas, offset=self.sampler.steps_offset)
        return (*times, 0.0)

    def landings(self, times: tuple[float, ...]) -> tuple[float, ...]:
        """Where the steps of the teacher's own sampler land; empty where each lands at the next of `times`."""
        if self.kind is DiffusionKind.FLOW:
            return ()
        stride, last = self.num_train_steps // (len(times) - 1), float(self.sampler.last_time)
        below = (time - stride for time in times[:-1]) if self.sampler.strides else times[1:]
        found = tuple(float(time) if time >= 1 else last for time in below)
        return () if found == times[1:] else found

    def sample_times(self, batch: int, generator: torch.Generator) -> Times:
        """Training times. VP: uniform. FLOW: logit-normal (scale 1.2), 10 % uniform, 3 % exactly 1.

        The last share makes sure that the first solver step, which starts at t = 1, has been trained.
        """
        even = uniform((batch,), generator=generator)
        if self.kind is DiffusionKind.VP:
            return (even * self.num_train_steps).floor() + 1
        logit_normal = torch.sigmoid(1.2 * normal((batch,), generator=generator))
        which = uniform((batch,), generator=generator)
        return torch.where(which < 0.03, 1.0, torch.where(which < 0.13, even, logit_normal))


def ddim_step(diffusion: Diffusion, x: Latents, output: Latents, t: Times, t_next: Times) -> Latents:
    """One deterministic step from `t` to `t_next` (DDIM with eta = 0). For FLOW this is Euler's step."""
    x_0_hat, noise_hat = diffusion.split(x, output, t)
    return diffusion.add_noise(x_0_hat, noise_hat, t_next)


def solver_output(
    denoise: Callable[[Latents, Times], Latents],
    diffusion: Diffusion,
    x: Latents,
    t: Times,
    t_next: Times,
    *,
    solver: Solver,
) -> Latents:
    """The constant network output whose `ddim_step` from `t` to `t_next` is the solver's step.

    `denoise(x, t)` is the guided network. DDIM and EULER use its output at `t`; HEUN averages the slopes at both ends.
    What DPMPP_2M adds to the output at `t` needs the step before: see `Extrapolation`.
    """
    output = denoise(x, t)
    match solver:
        case Solver.DDIM | Solver.EULER | Solver.DPMPP_2M:
            return output
        case Solver.HEUN:
            return (output + denoise(ddim_step(diffusion, x, output, t, t_next), t_next)) / 2


class Extrapolation:
    """What makes DDIM's step DPM-Solver++(2M)'s: the clean estimate is led on along those of this step and the last.

    With lambda = log(alpha / sigma) and h the step in it, D = x_0_hat + h / (2 h_before) (x_0_hat - x_0_hat_before),
    and the step is DDIM's with D (Algorithm 2 of Lu et al., 2022). The first step has nothing before it, and at the
    ends of time, where lambda is infinite, the formula has no value or its limit D = x_0_hat: those are first order.
    """

    def __init__(self, diffusion: Diffusion) -> None:
        self.diffusion = diffusion
        self.before: tuple[Latents, Times] | None = None
        """The last step's clean estimate and lambda."""

    def __call__(self, x: Latents, output: Latents, t: Times, t_next: Times) -> Latents:
        """The output at `x` that implies D, given the network's own; steps must come in their order."""
        x_0_hat, start, end = self.diffusion.split(x, output, t)[0], *map(self.diffusion.lambda_at, (t, t_next))
        before, self.before = self.before, (x_0_hat, start)
        if before is None:
            return output
        weight = ((end - start) / (2 * (start - before[1]))).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        led_on = x_0_hat + _per_row(weight, x) * (x_0_hat - before[0])
        return self.diffusion.output_for(x, led_on, t)


def check_solver(diffusion: Diffusion, solver: Solver) -> None:
    """InputError unless `solver` is defined for `diffusion`."""
    own = (Solver.DDIM,) if diffusion.kind is DiffusionKind.VP else (Solver.EULER, Solver.HEUN)
    allowed = (*own, Solver.DPMPP_2M)
    if solver not in allowed:
        raise InputError(f"solver {solver} does not fit the diffusion {diffusion.kind}; allowed: {', '.join(allowed)}")


def _per_row(value: Times, like: Latents) -> Tensor:
    """`value` shaped to multiply each row of `like`."""
    return value.view(-1, *[1] * (like.ndim - 1))
