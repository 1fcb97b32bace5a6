"""A published network's tensors: read without running code, and brought under our names, each checked."""

import argparse
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ard.errors import InputError
from ard.models.layers import sincos_positions
from ard.models.transformer import Transformer, TransformerConfig
from ard.models.weights import StateDict, read_weights
from ard.teacher import TeacherCard

SCALING_FACTOR = 0.18215  # Of Stable Diffusion's autoencoder (Rombach et al., 2022), which DiT, SiT and REPA use.


class Published(NamedTuple):
    """A teacher as it was found, its weights under our names."""

    card: TeacherCard
    weights: StateDict


class Brought(NamedTuple):
    """A network as a folder brings it, and the tensors of it that are not used."""

    network: TransformerConfig
    weights: StateDict
    dropped: tuple[str, ...]


class Loaded(NamedTuple):
    """What a file holds: tensors, and the options of the training that wrote it, where it keeps them."""

    tensors: StateDict
    options: dict[str, Any]


def read_tensors(path: Path) -> Loaded:
    """The tensors of a .safetensors file or of what torch.save wrote; the averaged ones where a training saved both.

    InputError for a file that is damaged, that holds something else or that would need code to be run.
    """
    if path.suffix == ".safetensors":
        return Loaded(read_weights(path), {})
    saved = _unpickled(path)
    options = saved.get("args")
    tensors = saved["ema"] if isinstance(saved.get("ema"), Mapping) else saved
    if not tensors or not all(isinstance(name, str) and isinstance(item, Tensor) for name, item in tensors.items()):
        held = ", ".join(map(str, list(saved)[:5])) or "nothing"
        raise InputError(
            f"{path} holds {held}; a state dict is expected, or a training's checkpoint with one under ema"
        )
    return Loaded(dict(tensors), vars(options) if isinstance(options, argparse.Namespace) else {})


def _unpickled(path: Path) -> Mapping[Any, Any]:
    """What torch.save wrote: tensors, plain values and a Namespace, which is how trainings keep their options."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is announced before it is refused.
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # noqa: BLE001 unpickling something else may raise anything
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain values, and code is never run; save its state "
            "dict alone, best as .safetensors"
        ) from None
    if not isinstance(saved, Mapping):
        raise InputError(f"{path} holds a {type(saved).__name__}; a state dict is expected")
    return saved


def shape_of(tensors: StateDict, name: str, dimensions: int, where: Path) -> tuple[int, ...]:
    """The shape of a tensor that tells something about the network; InputError when it is missing or another thing."""
    if name not in tensors:
        raise InputError(f"{where} lacks {name}; a DiT, SiT or REPA network is expected")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise InputError(f"{where}: {name} has the shape {shape}; {dimensions} dimensions are expected")
    return shape


def check_positions(given: Tensor, network: TransformerConfig, where: Path) -> None:
    """InputError unless a stored position table is the fixed one that the network computes itself."""
    fixed = sincos_positions(network.width, network.grid, scale=network.position_scale)
    if given.numel() != fixed.numel() or not torch.allclose(given.float().view_as(fixed), fixed, rtol=0, atol=1e-3):
        raise InputError(
            f"{where}: pos_embed is not DiT's sine-cosine table of {network.grid} x {network.grid} patches"
        )


def renamed(
    tensors: StateDict, sources: Mapping[str, tuple[str, ...]], network: TransformerConfig, where: Path
) -> StateDict:
    """Our tensors in float32, each from the ones that `sources` names, joined along the rows.

    A convolution over patches becomes the matrix that it is. InputError that names what is missing, extra or misshapen.
    """
    wanted = [name for names in sources.values() for name in names]
    _refuse("lacks", (name for name in wanted if name not in tensors), where)
    _refuse("has extra", (name for name in tensors if name not in set(wanted)), where)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(network).state_dict().items()}
    weights = {ours: torch.cat([tensors[name] for name in names]) for ours, names in sources.items()}
    weights = {name: tensor.flatten(1) if tensor.ndim == 4 else tensor for name, tensor in weights.items()}
    misshapen = (", ".join(sources[name]) for name, tensor in weights.items() if tensor.shape != shapes[name])
    _refuse("does not fit its own shapes in", misshapen, where)
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def our_names(network: TransformerConfig) -> list[str]:
    """The names of our tensors."""
    with torch.device("meta"):
        return list(Transformer(network).state_dict())


def _refuse(what: str, names: Iterable[str], where: Path) -> None:
    if found := list(names):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"{where} {what} {', '.join(found[:5])}{more}")
