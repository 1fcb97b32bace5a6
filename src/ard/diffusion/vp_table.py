"""The variance-preserving process in numbers: its betas, and alpha and sigma at each discrete time and in between."""

import functools
from enum import StrEnum
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.types import Times


class BetaSchedule(StrEnum):
    """How VP's betas rise from the first to the last; diffusers' names."""

    LINEAR = "linear"  # Evenly (Ho et al., 2020): DiT's and PixArt's.
    SCALED_LINEAR = "scaled_linear"  # Evenly in their square roots (Rombach et al., 2022).
    COSINE = "squaredcos_cap_v2"  # So that alpha falls like a cosine (Nichol and Dhariwal, 2021); neither end counts.


Betas: TypeAlias = tuple[BetaSchedule, int, float, float]  # The schedule, their number, the first and the last.


@functools.lru_cache(maxsize=8)
def vp_table(betas: Betas, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """VP: alpha and sigma at the times 0 … num_train_steps, computed in float64; time 0 is the clean image."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - _betas(*betas), dim=0)])
    return alpha_bar.sqrt().to(dtype).to(device), (1 - alpha_bar).sqrt().to(dtype).to(device)


def _betas(schedule: BetaSchedule, count: int, first: float, last: float) -> Float[Tensor, " time"]:
    match schedule:
        case BetaSchedule.LINEAR:
            return torch.linspace(first, last, count, dtype=torch.float64)
        case BetaSchedule.SCALED_LINEAR:
            return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2
        case BetaSchedule.COSINE:
            angles = (torch.linspace(0, 1, count + 1, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2
            alpha_bar = angles.cos() ** 2
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def alpha_sigma_at(t: Times, alpha: Float[Tensor, " time"], sigma: Float[Tensor, " time"]) -> tuple[Times, Times]:
    """Alpha and sigma at `t`: the tables' own at a discrete time, else sigma / alpha is a straight line, as diffusers'.

    Every row is computed both ways, because a GPU would have to wait for a choice.
    """
    nearest, low = t.round().long(), t.long().clamp(max=len(alpha) - 2)
    ratio = torch.lerp(sigma[low] / alpha[low], sigma[low + 1] / alpha[low + 1], t - low)
    alpha_between = (1 + ratio**2).rsqrt()
    is_discrete = (t - nearest).abs() < 1e-3
    return (
        torch.where(is_discrete, alpha[nearest], alpha_between),
        torch.where(is_discrete, sigma[nearest], ratio * alpha_between),
    )
