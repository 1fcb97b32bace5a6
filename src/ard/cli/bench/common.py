"""What the benchmarks share: their network, their ceilings, and how results are told."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ard.analysis.flops import usual_network
from ard.analysis.latency import machine_facts
from ard.bench.ceilings import Ceiling, best_flops, measure_ceilings, product_shapes
from ard.bench.contenders import Contender, require_equal
from ard.bench.measure import Timed, measure_rows, plain_rows, ratios, rows_table
from ard.cli.options import parse_range
from ard.core.devices import DeviceName
from ard.core.errors import InputError
from ard.core.outputs import Outputs
from ard.core.progress import progress_bar
from ard.networks.registry import DIT
from ard.networks.transformer import TransformerConfig
from ard.reporting.table import as_text
from ard.teacher.teacher import load_teacher_card
from ard.text.encoded import require_classes

# Slower, faster: what the paper or a user would compare.
PAIRS = (
    *((f"teacher{steps}", name) for steps in (24, 25) for name in ("ard4-n6", "ard4-all", "step4", "kd1")),
    *((name, "step4") for name in ("ard4-n1", "ard4-n6", "ard4-all")),
    *((name, "step2") for name in ("ard2-n6", "ard2-all")),
    *((f"{name}-recomputed", name) for name in ("ard4-n6", "ard4-all")),
    *((name, f"{name}-{speed}") for name in ("ard4-n6", "ard4-all", "step4", "kd1") for speed in ("fast", "compiled")),
    *((f"teacher{steps}", f"ard4-n6-{speed}") for steps in (24, 25) for speed in ("fast", "compiled")),
    ("dense", "ours"),
    *(("eager", name) for name in ("compiled", "bf16", "bf16-compiled", "interval")),
    ("recomputed", "ours"),
    ("ours", "compiled"),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of every benchmark."""

    json: Path | None = None
    """Where to write what is measured as JSON."""
    overwrite: bool = False
    """Replace a file that is no earlier output of this command, too."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""


@dataclass(frozen=True, kw_only=True)
class NetworkBench(Bench):
    """The options of every benchmark of a network."""

    model: str = "DiT-S/2"
    """Size and patch on its usual data, such as DiT-XL/2 or tiny/2; or a teacher's folder."""
    batch: str = "1"
    """How many at a time: images, or trajectories; several such as 1,8,32."""
    rounds: int = 7
    """How often everything is timed."""
    device: DeviceName = "auto"
    """Where to compute."""


def named_network(model: str) -> TransformerConfig:
    """The network of a name such as DiT-XL/2 on its usual data, or of a teacher's folder."""
    if re.fullmatch(r"[^/]+/[0-9]+", model):
        return usual_network(model)
    network = load_teacher_card(Path(model)).network
    require_classes(network, owner=f"--model {model}", reader="the benchmarks time networks")
    if network.backbone != DIT:
        raise InputError(f"--model {model} is a {network.backbone}; the benchmarks time DiT's architecture only")
    return network


def parse_batches(text: str) -> list[int]:
    """The batch sizes of a text such as 1,8,32."""
    batches = parse_range(text, "batch")
    if 0 in batches:
        raise InputError(f"--batch {text}: a batch has at least 1 image")
    return batches


def dtype_of(device: torch.device) -> torch.dtype:
    """What products are computed in: bf16 on a GPU, else fp32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def ceilings_for(
    network: TransformerConfig, batches: Sequence[int], device: torch.device, *, rounds: int = 7
) -> list[Ceiling]:
    """The machine's rates at the network's own products, and at large square ones."""
    tokens = network.num_tokens * max(batches)
    return measure_ceilings(product_shapes(network, tokens), device=device, dtype=dtype_of(device), rounds=rounds)


def timed_alike(made: dict[int, list[Contender]], device: torch.device) -> list[Timed]:
    """Contenders by their batch size, to be timed; InputError when some that must draw the same images do not."""
    for group in made.values():
        require_equal(group, tolerance=1e-4 if device.type == "cpu" else 2e-2)
    return [
        Timed(name=one.name, batch=size, run=one.run, macs=one.macs * size)
        for size, group in made.items()
        for one in group
    ]


def time_and_tell(
    name: str, timed: Sequence[Timed], ceilings: Sequence[Ceiling], bench: NetworkBench, device: torch.device
) -> dict[str, Any]:
    """Time everything, print the table, the ratios and the machine; what was written as JSON if it was asked for."""
    with progress_bar(len(timed) * (bench.rounds + 1), name, unit="run") as bar:
        rows = measure_rows(timed, flops=best_flops(ceilings), rounds=bench.rounds, device=device, progress=bar.update)
    compared, machine = ratios(rows, PAIRS), machine_facts(device)
    print(as_text(*rows_table(rows)))
    for one in compared:
        print(f"{one['ratio']}, batch {one['batch']}: {one['value']:.3f}")
    print(f"floor: {best_flops(ceilings) / 1e12:.3g} TFLOP/s, the best product measured here just before")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    plain = {"bench": name, "machine": machine, "rows": plain_rows(rows), "ratios": compared}
    return written(bench, name, {**plain, "ceilings": [asdict(one) for one in ceilings]})


def check_json(bench: Bench, name: str) -> None:
    """InputError unless the benchmark called `name` can write its --json; before it measures."""
    Outputs(command=f"bench {name}", overwrite=bench.overwrite).check(bench.json)


def written(bench: Bench, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result, written as JSON where a path is given."""
    if bench.json:
        Outputs(command=f"bench {name}").json(bench.json, result)
        print(f"written to {bench.json}")
    return result
