"""One shard: a safetensors file with a checksum of each tensor and its store's identity in the header."""

import json
import math
import os
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.files import once_per_content, parse_json, require_file, write_atomically
from ard.core.model_folder import to_bytes

_TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}
_MAX_HEADER = 1 << 24
_BLOCK = 1 << 22  # Bytes that a check reads at once.


class DamagedShardError(InputError):
    """A shard is missing, torn, changed, or not what belongs in its place; making it again repairs the store."""


class OtherSizeError(DamagedShardError):
    """A shard has tensors of other shapes than its place, as the last one of a store that was smaller has."""


class Place(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """How many bytes one row has."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """How many bytes all of it has."""
        return self.shape[0] * self.row_bytes


def write_shard(path: Path, tensors: dict[str, Tensor], identity: str) -> None:
    """Publish a shard. The same content gives the same bytes: all metadata is one JSON key."""
    crc = {name: f"{zlib.crc32(_bytes_of(tensor).data):08x}" for name, tensor in tensors.items()}
    metadata = {"ard": json.dumps({"identity": identity, "crc32": crc}, sort_keys=True)}
    write_atomically(path, to_bytes(tensors, metadata))


@dataclass(frozen=True)
class Shard:
    """A shard's header: where each tensor lies in the file. Opening one reads no tensor data."""

    path: Path
    identity: str
    crc: dict[str, str]
    """Checksum by tensor; empty for prompts that ard 0.1.0 encoded."""
    header_crc: str
    """Checksum of the header, which holds all other checksums."""
    tensors: dict[str, Place]

    def damaged(self) -> list[str]:
        """The names of the tensors whose bytes do not match their checksum."""
        with closing(OpenShard(self)) as file:
            return [name for name in self.crc if file.checksum(name) != self.crc[name]]

    def require_undamaged(self) -> None:
        """DamagedShardError unless all bytes match their checksums; read once per content of the file and process."""
        once_per_content(self.path, self.header_crc, self._compare)

    def read(self, name: str) -> Tensor:
        """A whole tensor, unchecked."""
        with closing(OpenShard(self)) as file:
            return file.tensor(name)

    def _compare(self) -> None:
        if damaged := self.damaged():
            raise DamagedShardError(f"{self.path} is damaged: {', '.join(damaged)} does not match its checksum")


class OpenShard:
    """A shard's file, open for reading at any place by any thread; closed when nobody holds it."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._file = -1
        try:
            self._file = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedShardError(f"{shard.path} is missing") from None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; it cannot be read afterwards."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def tensor(self, name: str) -> Tensor:
        """A whole tensor."""
        place = self.shard.tensors[name]
        data = np.empty(place.num_bytes, dtype=np.uint8)
        self.read_into(data.data, place.offset)
        return torch.from_numpy(data).view(place.dtype).view(place.shape)

    def checksum(self, name: str) -> str:
        """CRC-32 of a tensor's bytes, in eight hexadecimal digits; 4 MiB are in memory at a time."""
        place, crc, block = self.shard.tensors[name], 0, memoryview(bytearray(_BLOCK))
        for start in range(0, place.num_bytes, _BLOCK):
            part = block[: min(_BLOCK, place.num_bytes - start)]
            self.read_into(part, place.offset + start)
            crc = zlib.crc32(part, crc)
        return f"{crc:08x}"

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._file, [buffer[done:]], offset + done)
            if not count:
                raise DamagedShardError(f"{self.shard.path} is damaged: it ends too early")
            done += count


def open_shard(path: Path) -> Shard:
    """Read and check a shard's header; DamagedShardError when the file is missing, torn or no shard of ours."""
    if not path.exists():
        raise DamagedShardError(f"{path} is missing")
    require_file(path)
    try:
        header, metadata, start, header_crc = _read_header(path)
        tensors = {
            name: Place(_TORCH_DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        identity, crc = _note(metadata, list(tensors))
    except DamagedShardError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise DamagedShardError(f"{path} is damaged: it is no shard of ard's") from None
    return Shard(path, identity, crc, header_crc, tensors)


def _note(metadata: dict[str, str], names: list[str]) -> tuple[str, dict[str, str]]:
    """(identity, checksum by tensor). Prompts that ard 0.1.0 encoded have the first under another name, and no more."""
    if "ard" not in metadata:
        return metadata["encoder"], {}
    note = parse_json(metadata["ard"], where="the header")
    return note["identity"], {name: note["crc32"][name] for name in names}


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int, str]:
    """(tensor entries, metadata, where tensor data starts, the header's checksum), checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise DamagedShardError(f"{path} is damaged: its header is cut off")
        data = file.read(length)
    header = parse_json(data, where=str(path))
    metadata = header.pop("__metadata__", {})
    if size != 8 + length + _data_bytes(header):
        raise DamagedShardError(f"{path} is damaged: its size does not match its header")
    return header, metadata, 8 + length, f"{zlib.crc32(data):08x}"


def _data_bytes(header: dict[str, Any]) -> int:
    """How many bytes the tensors take; ValueError unless they lie one behind the other, as their shapes say."""
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (start, stop, *entry["shape"]))
        if not whole or not entry["shape"] or start != end:
            raise ValueError(f"{entry} does not follow {end}")
        if stop - start != math.prod(entry["shape"]) * _TORCH_DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{entry} is not as long as its shape says")
        end = stop
    return end


def _bytes_of(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()
