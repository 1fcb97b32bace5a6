"""What the machine can do at best: the floors that every benchmark is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ard.analysis.latency import measure_latencies
from ard.networks.transformer import TransformerConfig

SQUARE = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # Sides of square products.
COPIED = {"cpu": 2**27, "cuda": 2**31}  # Bytes.
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One measured best: tera operations, or tera bytes, per second."""

    name: str
    rate: float
    """The median over the rounds."""
    lower_quartile: float
    upper_quartile: float
    unit: str


def product_shapes(network: TransformerConfig, tokens: int) -> list[tuple[int, int, int]]:
    """The matrix products (M, K, N) of a block over `tokens` tokens: qkv, proj, and the MLP's two."""
    width, hidden = network.width, int(network.width * network.mlp_ratio)
    return [(tokens, width, out) for out in (3 * width, width, hidden)] + [(tokens, hidden, width)]


def measure_ceilings(
    shapes: Sequence[tuple[int, int, int]], *, device: torch.device, dtype: torch.dtype, rounds: int
) -> list[Ceiling]:
    """The rates of matrix products of these shapes, of square ones, and of a copy, in interleaved rounds."""
    squares = [(side, side, side) for side in SQUARE.get(device.type, SQUARE["cpu"])]
    products = list(dict.fromkeys([*shapes, *squares]))
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    factors = [(random(m, k), random(k, n)) for m, k, n in products]
    source = torch.empty(COPIED.get(device.type, COPIED["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs = [*((lambda a=a, b=b: a @ b) for a, b in factors), lambda: target.copy_(source)]
    measured = measure_latencies(runs, rounds=rounds, device=device, progress=lambda _: None)
    works = [*((f"{m}x{k} @ {k}x{n}", 2 * m * k * n, "TFLOP/s") for m, k, n in products)]
    works.append(("copy (read and write)", 2 * source.numel(), "TB/s"))
    return [
        Ceiling(
            name=name,
            rate=work / one.median / TERA,
            lower_quartile=work / one.upper_quartile / TERA,
            upper_quartile=work / one.lower_quartile / TERA,
            unit=unit,
        )
        for (name, work, unit), one in zip(works, measured, strict=True)
    ]


def best_flops(ceilings: Sequence[Ceiling]) -> float:
    """The highest rate of a matrix product, FLOP/s: what a floor is computed from."""
    return max(one.rate for one in ceilings if one.unit == "TFLOP/s") * TERA
