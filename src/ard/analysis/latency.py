"""Seconds per batch of several models, measured in rounds in which each takes its turn."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

import ard


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds for a batch: the median over the rounds, and the quartiles as its spread."""

    median: float
    lower_quartile: float
    upper_quartile: float


def measure_latencies(
    models: Sequence[Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    progress: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Run every model once per round, after one run that warms up.

    What slows the machine down for a while meets all models, not one. The order moves on by one from round to round,
    so that none is always the first.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(-1, rounds):
        for place in range(len(models)):
            index = (place + max(turn, 0)) % len(models)
            _wait(device)
            started = clock()
            models[index]()
            _wait(device)
            if turn >= 0:
                seconds[index].append(clock() - started)
            progress(1)
    return [_latency(times) for times in seconds]


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """What a latency depends on beside the model: device, threads and versions."""
    cpu = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({cpu})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ard": ard.__version__,
        "python": platform.python_version(),
    }


def _latency(times: Sequence[float]) -> Latency:
    lower, upper = np.quantile(times, [0.25, 0.75]).tolist()
    return Latency(median=median(times), lower_quartile=lower, upper_quartile=upper)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; a GPU works while Python goes on."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
