"""The two diffusions: x_t = alpha(t) x_0 + sigma(t) noise, what their networks predict, and one solver step.

Time runs from `max_time` (noise) down to 0 (data, exactly: alpha = 1, sigma = 0).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ard.config import later
from ard.errors import InputError, require_at_least, require_at_most
from ard.types import Latents, Times


class DiffusionKind(StrEnum):
    """Which noise process a teacher was trained on."""

    VP = "vp"  # Variance preserving, linear betas, eps-prediction: DiT (Peebles and Xie, 2023).
    FLOW = "flow"  # Rectified flow, velocity prediction: SiT (Ma et al., 2024).


class TimeSpacing(StrEnum):
    """Which of its discrete times a VP teacher's solver visits; the first three are diffusers' names."""

    LINSPACE = "linspace"  # Evenly from the first to the last, rounded: DiT's own.
    LEADING = "leading"  # Whole strides up from the first: DDIM's (Song et al., 2021), and diffusers' default.
    TRAILING = "trailing"  # Strides down from the last (Lin et al., 2024).
    LOG_SNR = "log_snr"  # Evenly in the logarithm of the signal-to-noise ratio: DPM-Solver's (Lu et al., 2022).


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
    """VP: which times the teacher's solver visits."""
    clock: FlowClock = later(FlowClock.SCALED)
    """FLOW: what the network's time embedding is fed."""

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
        """DDIM for VP, Euler for FLOW."""
        return Solver.DDIM if self.kind is DiffusionKind.VP else Solver.EULER

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        """The signal's and the noise's coefficient at `t`, in t's dtype."""
        if self.kind is DiffusionKind.FLOW:
            return 1 - t, t
        alpha, sigma = _vp_table(self.num_train_steps, self.beta_start, self.beta_end, t.dtype, t.device)
        index = t.round().long()
        return alpha[index], sigma[index]

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
            return tuple(1 - step / num_teacher_steps for step in range(num_teacher_steps + 1))
        if num_teacher_steps == 1:
            return (self.max_time, 0.0)
        return (*map(float, self._vp_times(num_teacher_steps)), 0.0)

    def _vp_times(self, count: int) -> list[int]:
        """`count` > 1 of the noisy times 1 … num_train_steps, noise first."""
        last, steps = self.num_train_steps, range(count)
        match self.spacing:
            case TimeSpacing.LINSPACE:
                return [round(step * (last - 1) / (count - 1)) + 1 for step in reversed(steps)]
            case TimeSpacing.LEADING:
                return [step * (last // count) + 1 for step in reversed(steps)]
            case TimeSpacing.TRAILING:
                return [round(last - step * last / count) for step in steps]
            case TimeSpacing.LOG_SNR:
                return self._times_even_in_lambda(count)

    def _times_even_in_lambda(self, count: int) -> list[int]:
        """`count` of the noisy times, noise first, each the nearest that is left to an even grid in lambda."""
        values = self.lambda_at(torch.arange(1, self.num_train_steps + 1, dtype=torch.float64))
        wanted = torch.linspace(float(values[-1]), float(values[0]), count, dtype=torch.float64)
        times = [self.num_train_steps + 1]
        for left, value in zip(range(count, 0, -1), wanted, strict=True):
            nearest = int((values - value).abs().argmin()) + 1
            times.append(max(min(nearest, times[-1] - 1), left))
        return times[1:]

    def sample_times(self, batch: int, generator: torch.Generator) -> Times:
        """Training times. VP: uniform. FLOW: logit-normal (scale 1.2), 10 % uniform, 3 % exactly 1.

        The last share makes sure that the first solver step, which starts at t = 1, has been trained.
        """
        uniform = torch.rand(batch, generator=generator)
        if self.kind is DiffusionKind.VP:
            return (uniform * self.num_train_steps).floor() + 1
        normal = torch.sigmoid(1.2 * torch.randn(batch, generator=generator))
        which = torch.rand(batch, generator=generator)
        return torch.where(which < 0.03, 1.0, torch.where(which < 0.13, uniform, normal))


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


@functools.lru_cache(maxsize=8)
def _vp_table(
    num_train_steps: int, beta_start: float, beta_end: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """VP: alpha and sigma at the times 0 … num_train_steps, computed in float64; time 0 is the clean image."""
    betas = torch.linspace(beta_start, beta_end, num_train_steps, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, dim=0)])
    return alpha_bar.sqrt().to(dtype).to(device), (1 - alpha_bar).sqrt().to(dtype).to(device)


def _per_row(value: Times, like: Latents) -> Tensor:
    """`value` shaped to multiply each row of `like`."""
    return value.view(-1, *[1] * (like.ndim - 1))
