"""A published network's tensors: read without running code, found in what a training saved, each checked."""

import argparse
import collections
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.file_kinds import WeightsKind, kind_of_weights
from ard.core.model_folder import StateDict, read_weights, require_finite
from ard.networks.dit_layers import sincos_positions
from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.teacher import TeacherCard

SCALING_FACTOR = 0.18215  # Of Stable Diffusion's autoencoder (Rombach et al., 2022), which DiT, SiT and REPA use.
PUBLISHED_CLASSES = 1000  # DiT, SiT and REPA were published on ImageNet.
OPTIONS = ("args", "opts", "options", "config", "cfg", "hparams", "hyper_parameters")  # Where trainings keep theirs.
# What DDP, torch.compile, FSDP and checkpointing put into the names of what they wrap.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGES = re.compile(r"(^|[._])(ema|ema\d+|avg|averaged?|shadow|swa|polyak)([._]|$)")


class Published(NamedTuple):
    """A teacher as it was found, its weights under our names."""

    card: TeacherCard
    weights: StateDict


class Brought(NamedTuple):
    """A network as a folder brings it, the tensors of it that are not used, and what people are told."""

    network: TransformerConfig
    weights: StateDict
    dropped: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Saved(NamedTuple):
    """What a file holds: tensors, by the keys under which they lie, and the training's options where it keeps them."""

    groups: dict[str, StateDict]
    options: dict[str, Any]


class Found(NamedTuple):
    """A network's tensors among what a file holds, and what people are told of that."""

    tensors: StateDict
    notes: tuple[str, ...]


def read_saved(path: Path) -> Saved:
    """What a file of safetensors or of torch.save holds.

    InputError for a file that is damaged, that is something else or that would need code to be run.
    """
    if kind_of_weights(path) is WeightsKind.SAFETENSORS:
        return Saved({"": read_weights(path)}, {})
    saved = _unpickled(path)
    groups: dict[str, StateDict] = {}
    _gather(saved, "", groups)
    return Saved(groups, _options(saved))


def read_tensors(path: Path) -> StateDict:
    """The tensors of a file that holds nothing else."""
    groups = read_saved(path).groups
    if set(groups) != {""}:
        raise InputError(f"{path} holds {_listed(groups) or 'no tensors'}; a state dict is expected")
    return groups[""]


def find_network(saved: Saved, anchor: str, key: str | None, where: Path) -> Found:
    """The tensors of the network that has one called `anchor`, without what stands before it in their names.

    Where a training saved its network twice the averaged one is taken. InputError when there is none, or when it cannot
    be told which is meant and `key` does not say it.
    """
    places = _places(saved, anchor)
    if not places:
        raise InputError(
            f"{where} holds {_listed(saved.groups) or 'no tensors'}; a state dict is expected, or a training's "
            f"checkpoint with one: it lacks {anchor}, which DiT, SiT, REPA and PixArt have"
        )
    label = _chosen(list(places), key, where)
    tensors = places[label]
    require_finite(tensors, where)
    left = [other or "the others" for other in places if other != label]
    told = [f"weights: those under {label}" + (f", not those under {', '.join(left)}" if left else "")] if label else []
    stripped = sorted({part for group in saved.groups.values() for name in group for part in _wrappers(name)})
    told += [f"stripped from the names: {', '.join(stripped)}"] if stripped else []
    return Found(tensors, tuple(told))


def _places(saved: Saved, anchor: str) -> dict[str, StateDict]:
    """Every network in a file, by the key and the prefix under which its tensors lie."""
    found: dict[str, StateDict] = {}
    for key, group in saved.groups.items():
        tensors = {_unwrapped(name): tensor for name, tensor in group.items()}
        for prefix in [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]:
            own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            found[".".join(filter(None, (key, prefix.rstrip("."))))] = own
    return found


def _chosen(labels: list[str], key: str | None, where: Path) -> str:
    """Which of the networks in a file is meant."""
    if key is not None:
        fitting = [label for label in labels if label == key or label.startswith(f"{key}.")]
        if len(fitting) != 1:
            raise InputError(
                f"{where} has weights under {', '.join(labels)}; --weights-key {key} names none or several"
            )
        return fitting[0]
    averaged = [label for label in labels if AVERAGES.search(label)]
    if len(candidates := averaged or labels) > 1:
        listed = ", ".join(label or "(no key)" for label in candidates)
        raise InputError(f"{where} has weights under {listed}; say which with --weights-key")
    return candidates[0]


def _wrappers(name: str) -> list[str]:
    return [part for part in name.split(".") if part in WRAPPERS]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _gather(saved: Mapping[Any, Any], key: str, groups: dict[str, StateDict]) -> None:
    """Put the tensors of each object among nested ones under its dotted key."""
    for name, item in saved.items():
        if isinstance(item, Tensor) and isinstance(name, str):
            groups.setdefault(key, {})[name] = item
        elif isinstance(item, Mapping):
            _gather(item, f"{key}.{name}".lstrip("."), groups)


def _options(saved: Mapping[Any, Any]) -> dict[str, Any]:
    """A training's options, kept as a Namespace or as a dictionary."""
    for name in OPTIONS:
        item = saved.get(name)
        if isinstance(item, argparse.Namespace):
            return vars(item)
        if isinstance(item, Mapping):
            return {str(key): value for key, value in item.items()}
    return {}


def _listed(groups: Mapping[str, StateDict]) -> str:
    """The keys that hold tensors, a few of each."""
    names = [key or ", ".join(list(group)[:3]) for key, group in groups.items()]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _unpickled(path: Path) -> Mapping[Any, Any]:
    """What torch.save wrote: tensors, plain values, and what trainings keep their options in."""
    mapped = kind_of_weights(path) is WeightsKind.ZIP
    try:
        with torch.serialization.safe_globals(_plain_values()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is announced before it is refused.
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # noqa: BLE001 unpickling something else may raise anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain values{_others(path, mapped=mapped)}, and code "
            "is never run; save its state dict alone, best as .safetensors"
        ) from None
    if not isinstance(saved, Mapping):
        raise InputError(f"{path} holds a {type(saved).__name__}; a state dict is expected")
    return saved


def _plain_values() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What options are made of besides Python's own types; building one of these runs nothing else."""
    paths = {"PosixPath": Path, "WindowsPath": pathlib.PureWindowsPath, "PurePosixPath": pathlib.PurePosixPath}
    named = [(cls, f"{module}.{name}") for name, cls in paths.items() for module in ("pathlib", "pathlib._local")]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]  # noqa: SLF001 it has no other name
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    return [argparse.Namespace, collections.defaultdict, dict, np.dtype, *dtypes, *scalars, *named]


def _others(path: Path, *, mapped: bool) -> str:
    """The kinds of things in a file that only code could make."""
    if not mapped:
        return ""
    try:
        with torch.serialization.safe_globals(_plain_values()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 a damaged file may raise anything
        return ""
    return f" ({', '.join(sorted(names)[:3])})" if names else ""


def shape_of(tensors: StateDict, name: str, dimensions: int, where: Path) -> tuple[int, ...]:
    """The shape of a tensor that tells something about the network; InputError when it is missing or another thing."""
    if name not in tensors:
        raise InputError(f"{where} lacks {name}; a DiT, SiT, REPA or PixArt network is expected")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise InputError(f"{where}: {name} has the shape {shape}; {dimensions} dimensions are expected")
    return shape


def check_positions(given: Tensor, network: TransformerConfig, where: Path) -> None:
    """InputError unless a stored position table is the fixed one that the network computes itself."""
    if not are_positions(given, network):
        raise InputError(
            f"{where}: pos_embed is not DiT's sine-cosine table of {network.grid} x {network.grid} patches"
        )


def are_positions(given: Tensor, network: TransformerConfig) -> bool:
    """Whether a stored table of positions is the network's own, within the precision that it is stored in."""
    fixed = sincos_positions(network.width, network.grid, scale=network.position_scale)
    rounding = max(1e-3, torch.finfo(given.dtype).eps if given.is_floating_point() else 0)
    return given.numel() == fixed.numel() and torch.allclose(given.float().view_as(fixed), fixed, rtol=0, atol=rounding)


def renamed(
    tensors: StateDict, sources: Mapping[str, tuple[str, ...]], network: TransformerConfig, where: Path
) -> StateDict:
    """Our tensors in float32, each from the ones that `sources` names, joined along the rows.

    A convolution over patches becomes the matrix that it is. InputError that names what is missing, extra or misshapen.
    """
    wanted = [name for names in sources.values() for name in names]
    _refuse("lacks", (name for name in wanted if name not in tensors), where)
    _refuse("has extra", (name for name in tensors if name not in set(wanted)), where)
    _refuse("is quantised: whole numbers in", (n for n in wanted if not tensors[n].is_floating_point()), where)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(network).state_dict().items()}
    weights = {ours: torch.cat([tensors[name].float() for name in names]) for ours, names in sources.items()}
    weights = {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in weights.items()}
    misshapen = (", ".join(sources[name]) for name, tensor in weights.items() if tensor.shape != shapes[name])
    _refuse("does not fit its own shapes in", misshapen, where)
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def our_names(network: TransformerConfig) -> list[str]:
    """The names of our tensors."""
    with torch.device("meta"):
        return list(Transformer(network).state_dict())


def _refuse(what: str, names: Iterable[str], where: Path) -> None:
    if found := list(names):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"{where} {what} {', '.join(found[:5])}{more}")
