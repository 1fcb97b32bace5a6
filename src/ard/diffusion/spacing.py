"""Which times a teacher's solver visits: each of diffusers' ways and our own, as plain numbers, noise first."""

import math
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.errors import InputError

KARRAS_RHO = 7.0  # Karras et al. (2022), and diffusers.


class TimeSpacing(StrEnum):
    """Which times a teacher's solver visits: VP's discrete ones, or in between where it says so; the last for flow."""

    LINSPACE = "linspace"  # Evenly from the first to the last, rounded: DiT's own.
    LEADING = "leading"  # Whole strides up from the first: DDIM's (Song et al., 2021), and diffusers' default.
    TRAILING = "trailing"  # Strides down from the last (Lin et al., 2024).
    LOG_SNR = "log_snr"  # Evenly in the logarithm of the signal-to-noise ratio: DPM-Solver's (Lu et al., 2022).
    LINSPACE_EXACT = "linspace_exact"  # As linspace, between the discrete times: diffusers' Euler.
    LINSPACE_OPEN = "linspace_open"  # As linspace with one more, which is left out: diffusers' DPM-Solver++.
    LEADING_OPEN = "leading_open"  # As leading with one more, which is left out: diffusers' DPM-Solver++.
    KARRAS = "karras"  # Evenly in (sigma / alpha)^(1/7), between the discrete times (Karras et al., 2022).
    EXPONENTIAL = "exponential"  # As log_snr, between the discrete times: diffusers' exponential sigmas and lu lambdas.
    FLOW_MATCH = "flow_match"  # Flow: evenly from 1 to the first time, then shifted: diffusers' FlowMatchEuler.


def vp_times(
    spacing: TimeSpacing, count: int, *, lambdas: Float[Tensor, " time"], offset: int = 0
) -> tuple[float, ...]:
    """`count` > 1 of the noisy times 1 … len(lambdas), where lambda is log(alpha / sigma); noise first.

    `offset` is added to the leading ones. InputError when there are not so many.
    """
    last, even = len(lambdas), torch.linspace(float(lambdas[-1]), float(lambdas[0]), count, dtype=torch.float64)
    match spacing:
        case TimeSpacing.LOG_SNR:
            times = _nearest(even, lambdas)
        case TimeSpacing.EXPONENTIAL:
            times = _between(even, lambdas)
        case TimeSpacing.KARRAS:
            first, end = (math.exp(-float(value) / KARRAS_RHO) for value in lambdas[[-1, 0]])
            times = _between(-KARRAS_RHO * torch.linspace(first, end, count, dtype=torch.float64).log(), lambdas)
        case _:
            times = _by_number(spacing, count, last, offset)
    if times[0] > last or any(later <= earlier for earlier, later in zip(times[1:], times, strict=False)):
        raise InputError(f"{count} teacher steps are too many for the spacing {spacing} of {last} times")
    return tuple(times)


def _by_number(spacing: TimeSpacing, count: int, last: int, offset: int) -> list[float]:
    """The spacings that are even in the number of the time."""
    rising = range(count)
    match spacing:
        case TimeSpacing.LEADING:
            times = [step * (last // count) + 1 + offset for step in rising]
        case TimeSpacing.LEADING_OPEN:
            times = [(step + 1) * (last // (count + 1)) + 1 + offset for step in rising]
        case TimeSpacing.TRAILING:
            times = [round(last - step * last / count) for step in reversed(rising)]
        case TimeSpacing.LINSPACE_OPEN:
            times = [round((step + 1) * (last - 1) / count) + 1 for step in rising]
        case TimeSpacing.LINSPACE_EXACT:
            return [step * (last - 1) / (count - 1) + 1 for step in reversed(rising)]
        case _:
            times = [round(step * (last - 1) / (count - 1)) + 1 for step in rising]
    return [float(time) for time in reversed(times)]


def flow_times(spacing: TimeSpacing, count: int, *, num_train_steps: int, shift: float) -> tuple[float, ...]:
    """The `count` times of a flow's solver above 0, noise first: 1 - step / count, or FlowMatchEuler's.

    That one goes evenly down to the shifted first time of training and shifts what it gets: t' = s t / (1 + (s - 1) t).
    """
    if spacing is not TimeSpacing.FLOW_MATCH:
        return tuple(1 - step / count for step in range(count))
    even = torch.linspace(1, _shifted(1 / num_train_steps, shift), count, dtype=torch.float64).tolist()
    return tuple(_shifted(t, shift) for t in even)


def _shifted(t: float, shift: float) -> float:
    return shift * t / (1 + (shift - 1) * t)


def _nearest(wanted: Float[Tensor, " count"], lambdas: Float[Tensor, " time"]) -> list[float]:
    """For each wanted lambda the nearest time that is left, noise first."""
    times = [len(lambdas) + 1]
    for left, value in zip(range(len(wanted), 0, -1), wanted, strict=True):
        nearest = int((lambdas - value).abs().argmin()) + 1
        times.append(max(min(nearest, times[-1] - 1), left))
    return [float(time) for time in times[1:]]


def _between(wanted: Float[Tensor, " count"], lambdas: Float[Tensor, " time"]) -> list[float]:
    """The times at which lambda, drawn as straight lines between the discrete ones, has the wanted values."""
    rising = lambdas.flip(0).double().contiguous()  # From noise to data.
    wanted = wanted.clamp(float(rising[0]), float(rising[-1]))
    above = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
    part = (wanted - rising[above - 1]) / (rising[above] - rising[above - 1])
    return [float(time) for time in len(lambdas) - (above - 1 + part)]
