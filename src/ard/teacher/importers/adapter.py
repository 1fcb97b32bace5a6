"""LoRA adapters (Hu et al., 2022) that others trained on a published network, merged into its weights: W + s B A.

s is alpha / rank, or alpha / sqrt(rank) where the adapter says so. peft keeps alpha in adapter_config.json, kohya in a
tensor, diffusers in the file's metadata; a file of diffusers without it means alpha = rank.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ard.core.errors import InputError
from ard.core.file_kinds import WeightsKind, kind_of_weights
from ard.core.files import read_json
from ard.core.model_folder import StateDict, require_finite
from ard.teacher.importers.tensors import read_tensors

STEMS = ("adapter_model", "pytorch_lora_weights")  # Of peft, and of diffusers.
FILES = tuple(f"{stem}.{form}" for form in ("safetensors", "bin") for stem in STEMS)
CONFIG = "adapter_config.json"
PART = re.compile(r"(?P<layer>.+)\.(?:lora_(?P<part>A|B|down|up)(?:\.default)?\.weight|(?P<alpha>alpha))")
REFUSED = {"use_dora": "DoRA", "rank_pattern": "ranks per layer", "alpha_pattern": "alphas per layer"}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The low-rank changes of some layers, by the layers' names in the file."""

    path: Path
    changes: Mapping[str, tuple[Tensor, Tensor, float]]
    """A, B and s."""

    def merged_into(self, tensors: StateDict, where: Path) -> StateDict:
        """The network's tensors with the changes; InputError for a layer that it does not have, or of another shape."""
        changed = dict(tensors)
        for layer, (a, b, scale) in self.changes.items():
            name = _weight_of(layer, tensors)
            if name is None:
                raise InputError(f"{self.path} adapts {layer}, which {where} does not have; it is another network's")
            weight = tensors[name].float()
            if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != tuple(weight.shape) or len(a) != b.shape[1]:
                raise InputError(f"{self.path} does not fit the shape of {name} in {where}; it is another network's")
            changed[name] = weight + scale * b.float() @ a.float()
        return changed

    def __str__(self) -> str:
        ranks = sorted({len(a) for a, _, _ in self.changes.values()})
        return f"LoRA: {self.path.name} merged into {len(self.changes)} layers, rank {', '.join(map(str, ranks))}"


def read_adapter(given: Path) -> Adapter:
    """The adapter in a file or in a folder of peft or diffusers; InputError when there is none, or of another kind."""
    path = _file_of(given)
    tensors, settings = read_tensors(path), _settings(path)
    require_finite(tensors, path)
    if asked := [word for field, word in REFUSED.items() if settings.get(field)]:
        raise InputError(f"{path} has {', '.join(asked)}, which is not supported; merge it where it was trained")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (found := PART.fullmatch(name)) is None:
            raise InputError(f"{path} has {name}, which is no part of a LoRA adapter; merge it where it was trained")
        part = {"down": "A", "up": "B"}.get(found["part"] or "", found["part"] or "alpha")
        layers.setdefault(found["layer"], {})[part] = tensor
    if halves := [layer for layer, parts in layers.items() if not {"A", "B"} <= parts.keys()]:
        raise InputError(f"{path} has half an adapter of {halves[0]}; fetch or copy it again")
    return Adapter(
        path=path,
        changes={
            layer: (parts["A"], parts["B"], _scale(parts, settings, path)) for layer, parts in sorted(layers.items())
        },
    )


def merged_with(given: Path | None, tensors: StateDict, where: Path) -> tuple[StateDict, list[str]]:
    """The tensors with the adapter in `given` merged, where there is one, and what people are told of it."""
    if given is None:
        return tensors, []
    adapter = read_adapter(given)
    return adapter.merged_into(tensors, where), [str(adapter)]


def refuse_adapters(tensors: Mapping[str, Tensor], where: Path) -> None:
    """InputError for a file that is an adapter alone, or that has adapters among its own layers."""
    if any(PART.fullmatch(name) and ".lora_" in name for name in tensors):
        told = (
            "has LoRA adapters among its layers"
            if any(".base_layer." in name for name in tensors)
            else ("is a LoRA adapter, no network")
        )
        raise InputError(f"{where} {told}; name the network that it was trained on, and the adapter with --lora")


def _file_of(given: Path) -> Path:
    if not given.is_dir():
        return given
    found = [given / name for name in FILES if (given / name).is_file()]
    if not found:
        raise InputError(f"{given} has no LoRA adapter; allowed: {', '.join(FILES[:2])}")
    return found[0]


def _settings(path: Path) -> dict[str, Any]:
    """What is said of an adapter beside it, or in its file; empty for one of diffusers that says nothing."""
    if (beside := path.with_name(CONFIG)).is_file():
        return read_json(beside)
    if path.name.startswith("adapter_model"):
        raise InputError(f"{path} has no {CONFIG} beside it, which tells how much it changes; fetch that too")
    if kind_of_weights(path) is not WeightsKind.SAFETENSORS:
        return {}
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        plain = json.loads(text)
        return {str(name).rpartition(".")[2]: value for name, value in plain.items()}
    except (ValueError, RecursionError, AttributeError):
        raise InputError(f"{path} is damaged: its lora_adapter_metadata is no JSON object") from None


def _scale(parts: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> float:
    rank = len(parts["A"])
    alpha = parts["alpha"].item() if "alpha" in parts else settings.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{path}: lora_alpha is {alpha!r:.40}; a number is expected")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _weight_of(layer: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The weight that an adapter's layer names, behind prefixes such as base_model.model. or transformer."""
    parts = layer.split(".")
    names = (".".join([*parts[first:], "weight"]) for first in range(len(parts)))
    return next((name for name in names if name in tensors), None)
