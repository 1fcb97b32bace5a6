"""What the benchmarks share: their network, their ceilings, and how results are told."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ard.analysis.flops import usual_network
from ard.analysis.latency import machine_facts
from ard.bench.ceilings import Ceiling, best_flops, measure_ceilings, product_shapes
from ard.bench.measure import BenchRow, plain_rows, ratios, rows_table
from ard.cli.options import parse_range
from ard.errors import InputError
from ard.files import write_json
from ard.models.transformer import TransformerConfig
from ard.table import as_text
from ard.teacher import load_teacher_card

# Slower, faster: what the paper or a user would compare.
PAIRS = (
    *((f"teacher{steps}", name) for steps in (24, 25) for name in ("ard4-n6", "ard4-all", "step4", "kd1")),
    *((name, "step4") for name in ("ard4-n1", "ard4-n6", "ard4-all")),
    *((name, "step2") for name in ("ard2-n6", "ard2-all")),
    *((f"{name}-recomputed", name) for name in ("ard4-n6", "ard4-all")),
    ("dense", "ours"),
)


def named_network(model: str) -> TransformerConfig:
    """The network of a name such as DiT-XL/2 on its usual data, or of a teacher's folder."""
    if re.fullmatch(r"[^/]+/[0-9]+", model):
        return usual_network(model)
    return load_teacher_card(Path(model)).network


def parse_batches(text: str) -> list[int]:
    """The batch sizes of a text such as 1,8,32."""
    batches = parse_range(text, "batch")
    if 0 in batches:
        raise InputError(f"--batch {text}: a batch has at least 1 image")
    return batches


def dtype_of(device: torch.device) -> torch.dtype:
    """What products are computed in: bf16 on a GPU, else fp32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def ceilings_for(network: TransformerConfig, batches: Sequence[int], device: torch.device) -> list[Ceiling]:
    """The machine's rates at the network's own products, and at large square ones."""
    tokens = network.num_tokens * max(batches)
    return measure_ceilings(product_shapes(network, tokens), device=device, dtype=dtype_of(device), rounds=7)


def tell(
    name: str, rows: Sequence[BenchRow], ceilings: Sequence[Ceiling], device: torch.device, json: Path | None
) -> None:
    """Print the table, the ratios and the machine, and write the JSON."""
    compared, machine = ratios(rows, PAIRS), machine_facts(device)
    print(as_text(*rows_table(rows)))
    for one in compared:
        print(f"{one['ratio']}, batch {one['batch']}: {one['value']:.3f}")
    print(f"floor: {best_flops(ceilings) / 1e12:.3g} TFLOP/s, the best product measured here just before")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if json:
        plain = {"bench": name, "machine": machine, "rows": plain_rows(rows), "ratios": compared}
        write_json(json, {**plain, "ceilings": [asdict(one) for one in ceilings]})
        print(f"written to {json}")
