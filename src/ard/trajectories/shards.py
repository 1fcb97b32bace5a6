"""One shard: a safetensors file with a checksum of each tensor and its store's identity in the header."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ard.errors import InputError
from ard.files import write_atomically
from ard.models.weights import to_bytes

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
REPAIR = "; delete it and run the same ard collect command again"
_TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def write_shard(path: Path, tensors: dict[str, Tensor], identity: str) -> None:
    """Publish a shard. The same content gives the same bytes: all metadata is one JSON key."""
    crc = {name: _crc(_bytes_of(tensor)) for name, tensor in tensors.items()}
    metadata = {"ard": json.dumps({"identity": identity, "crc32": crc}, sort_keys=True)}
    write_atomically(path, to_bytes(tensors, metadata))


@dataclass(frozen=True)
class Shard:
    """A shard's header: where each tensor lies in the file. Opening one reads no tensor data."""

    path: Path
    identity: str
    crc: dict[str, str]
    header_crc: str
    """Checksum of the header, which holds all other checksums."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int]]
    """Name to (dtype, shape, offset in the file)."""

    @property
    def rows(self) -> int:
        """How many rows each tensor has."""
        return next(iter(self.tensors.values()))[1][0]

    def map(self, name: str) -> Bytes:
        """A tensor's rows as a memory map of bytes, one row per trajectory."""
        dtype, shape, offset = self.tensors[name]
        row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=offset, shape=(shape[0], row_bytes))

    def damaged(self) -> list[str]:
        """The names of the tensors whose bytes do not match their checksum."""
        return [name for name in self.tensors if _crc(self.map(name)) != self.crc.get(name)]

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        dtype, shape, _ = self.tensors[name]
        return torch.from_numpy(np.array(self.map(name))).view(-1).view(dtype).view(shape)


def open_shard(path: Path) -> Shard:
    """Read and check a shard's header; InputError when the file is missing, empty, torn or no shard of ours."""
    try:
        header, metadata, start, header_crc = _read_header(path)
        note = json.loads(metadata["ard"])
        tensors = {
            name: (_TORCH_DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        crc = {name: note["crc32"][name] for name in tensors}
        shard = Shard(path, note["identity"], crc, header_crc, tensors)
        rows = shard.rows
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the same ard collect command again") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise InputError(f"{path} is no trajectory shard{REPAIR}") from None
    if not rows:
        raise InputError(f"{path} is empty{REPAIR}")
    return shard


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int, str]:
    """(tensor entries, metadata, where tensor data starts, the header's checksum), checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 1 << 24):
            raise InputError(f"{path} is damaged: its header is cut off{REPAIR}")
        data = file.read(length)
    header = json.loads(data)
    metadata = header.pop("__metadata__", {})
    if size != 8 + length + _data_bytes(header):
        raise InputError(f"{path} is damaged: its size does not match its header{REPAIR}")
    return header, metadata, 8 + length, f"{zlib.crc32(data):08x}"


def _data_bytes(header: dict[str, Any]) -> int:
    """How many bytes the tensors take; ValueError unless they lie one behind the other, as their shapes say."""
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end or stop - start != math.prod(entry["shape"]) * _TORCH_DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{entry} does not follow {end}")
        end = stop
    return end


def _bytes_of(tensor: Tensor) -> Bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _crc(data: Bytes) -> str:
    return f"{zlib.crc32(data.data):08x}"
