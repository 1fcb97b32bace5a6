"""What is measured becomes rows: milliseconds, their spread, and the ratio to the floor and to one another."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ard.analysis.latency import measure_latencies


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Something to time, and the work of one run."""

    name: str
    batch: int
    run: Callable[[], object]
    macs: int
    """Multiply-accumulates of the whole batch."""
    peak_mb: float | None = None
    """The memory that was counted before; None: what the device says, where it says something."""


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One line of a benchmark."""

    model: str
    batch: int
    median_ms: float
    """Per batch."""
    spread: float
    """Half of the distance between the quartiles, as a part of the median."""
    ms_per_image: float
    gmac_per_image: float
    floor_ms: float
    """What the batch's products would take at the best measured rate of a product."""
    over_floor: float
    peak_mb: float | None
    """Highest memory allocated on a GPU; on a CPU what was counted, or None."""


def measure_rows(
    timed: Sequence[Timed],
    *,
    flops: float,
    rounds: int,
    device: torch.device,
    progress: Callable[[int], object] = lambda _: None,
) -> list[BenchRow]:
    """Time everything in interleaved rounds, and compare with `flops`, the best measured FLOP/s."""
    peaks = [_peak_mb(one, device) for one in timed]
    measured = measure_latencies([one.run for one in timed], rounds=rounds, device=device, progress=progress)
    rows = []
    for one, seconds, peak in zip(timed, measured, peaks, strict=True):
        floor = 2 * one.macs / flops
        rows.append(
            BenchRow(
                model=one.name,
                batch=one.batch,
                median_ms=1e3 * seconds.median,
                spread=(seconds.upper_quartile - seconds.lower_quartile) / (2 * seconds.median),
                ms_per_image=1e3 * seconds.median / one.batch,
                gmac_per_image=one.macs / one.batch / 1e9,
                floor_ms=1e3 * floor,
                over_floor=seconds.median / floor,
                peak_mb=peak,
            )
        )
    return rows


def ratios(rows: Sequence[BenchRow], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The first's time over the second's, for each batch at which both were measured."""
    found = []
    for slower, faster in pairs:
        for batch in dict.fromkeys(row.batch for row in rows):
            times = {row.model: row.median_ms for row in rows if row.batch == batch}
            if slower in times and faster in times:
                found.append({"ratio": f"{slower} / {faster}", "batch": batch, "value": times[slower] / times[faster]})
    return found


def rows_table(rows: Sequence[BenchRow]) -> tuple[list[str], list[list[str]]]:
    """Header and lines for people."""
    header = ["model", "batch", "ms", "spread", "ms/image", "GMAC/image", "floor ms", "over floor", "peak MB"]
    body = [
        [
            *(row.model, str(row.batch), f"{row.median_ms:.3g}", f"±{row.spread:.1%}", f"{row.ms_per_image:.3g}"),
            *(f"{row.gmac_per_image:.4g}", f"{row.floor_ms:.3g}", f"{row.over_floor:.2f}"),
            "–" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        ]
        for row in rows
    ]
    return header, body


def plain_rows(rows: Sequence[BenchRow]) -> list[dict[str, Any]]:
    """The rows as JSON holds them."""
    return [asdict(row) for row in rows]


def _peak_mb(timed: Timed, device: torch.device) -> float | None:
    """The memory that a run takes at most; the run warms up besides."""
    if device.type != "cuda":
        return timed.peak_mb
    torch.cuda.reset_peak_memory_stats(device)
    timed.run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20
