"""Model folders: config.json says what it is, model.safetensors holds the weights. Nothing is ever unpickled."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.core.file_kinds import WeightsKind, kind_of_weights
from ard.core.files import once_per_content, read_json, sha256_of, write_atomically, write_json

SCHEMA = 1
WEIGHTS = "model.safetensors"
StateDict = dict[str, Tensor]


def save_model(folder: Path, kind: str, config: dict[str, Any], weights: StateDict) -> None:
    """Publish a model folder; the configuration comes last, so that its presence means a whole folder.

    It records the checksum of the weights, which `sha256sum` prints too.
    """
    data = to_bytes(weights)
    write_atomically(folder / WEIGHTS, data)
    head = {"schema": SCHEMA, "kind": kind, "sha256": hashlib.sha256(data).hexdigest()}
    write_json(folder / "config.json", {**head, **config})


def load_config(folder: Path, kind: str) -> dict[str, Any]:
    """The configuration that was given to `save_model`; InputError when `folder` holds no model of this kind."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is no {kind}: it has no config.json")
    config = read_json(path)
    config.pop("sha256", None)
    found, schema = config.pop("kind", "thing unknown"), config.pop("schema", None)
    if found != kind:
        raise InputError(f"{folder} is no {kind}: its config.json says that it holds a {found}")
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}; this version of ard reads schema {SCHEMA}")
    return config


def load_model(module: nn.Module, folder: Path) -> None:
    """Load a model folder's weights into `module`; InputError when they are damaged or do not fit."""
    require_whole_weights(folder)
    load_weights(module, folder / WEIGHTS)


def require_whole_model(folder: Path, kind: str) -> None:
    """InputError unless `folder` holds a model of this kind, and its weights are those that were published."""
    load_config(folder, kind)
    require_whole_weights(folder)


def require_room(folder: Path, *, depth: int, width: int) -> None:
    """InputError when so many blocks of this width cannot be in the weights of `folder`; asked before they are made.

    A block has several matrices with width x width numbers, of at least a byte each.
    """
    path = folder / WEIGHTS
    kind_of_weights(path)
    if depth * width**2 > path.stat().st_size:
        raise InputError(f"{path} does not fit its config.json: it is too small for {depth} blocks of width {width}")


def require_whole_weights(folder: Path) -> None:
    """InputError unless the weights in `folder` are there and match their checksum.

    They are read for that once per content and process. What ard 0.1.0 published has no checksum.
    """
    path, recorded = folder / WEIGHTS, read_json(folder / "config.json").get("sha256")
    kind_of_weights(path)

    def compare() -> None:
        if sha256_of(path) != recorded:
            raise InputError(f"{path} is damaged or was changed: its SHA-256 is not the one that config.json records")

    if recorded is not None:
        once_per_content(path, str(recorded), compare)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load `path` into `module`; missing, extra or misshapen tensors are named."""
    weights = read_weights(path)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    given = {name: tensor.shape for name, tensor in weights.items()}
    if wanted != given:
        names = sorted(set(wanted) ^ set(given)) or [name for name in wanted if wanted[name] != given[name]]
        raise InputError(f"{path} does not fit its config.json; missing, extra or misshapen: {', '.join(names[:5])}")
    require_finite(weights, path)
    module.load_state_dict(weights)


def require_finite(weights: StateDict, where: Path) -> None:
    """InputError that names the tensors with a NaN or an infinity: a network that has one draws nothing."""
    wrong = [name for name, tensor in weights.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{where} has NaN or infinity in {', '.join(wrong[:5])}{more}; its training went wrong")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; what is stored in 8 bits is looked at in 32."""
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all())


def read_weights(path: Path) -> StateDict:
    """All tensors of a safetensors file; InputError when it is missing, something else, or half-written."""
    if kind_of_weights(path) is not WeightsKind.SAFETENSORS:
        raise InputError(f"{path} is damaged, or no safetensors file: torch.save wrote it")
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or half-written ({error})") from None


def to_bytes(weights: StateDict, metadata: dict[str, str] | None = None) -> bytes:
    """The safetensors form of `weights`, the same bytes for the same content."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata)


def checksum(weights: StateDict) -> str:
    """CRC-32 over all tensors, in eight hexadecimal digits: finds damage, proves nothing."""
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(weights[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def fingerprint(config: Any, weights: StateDict) -> str:
    """SHA-256 over a model's configuration and weights, in 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(to_bytes({name: weights[name].cpu()}))
    return digest.hexdigest()[:16]
