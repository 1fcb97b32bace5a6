"""A folder of shards and the record that names them: claimed before the work, finished after it, repaired by it.

The record is a JSON file with the manifest, which is everything that decides the content, and the checksums of the
shards' headers, which hold those of the data. It is complete when it names every shard.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError, require_at_least, require_at_most
from ard.core.files import read_json, write_json
from ard.core.sharded.shard import DamagedShardError, OtherSizeError, Shard, open_shard

MAX_SHARDS, MAX_ROWS = 1 << 20, 1 << 20  # Of a store, and of each shard: 10,000 and 256 for ImageNet's 2.56 million.
Checksums = dict[str, str]  # By the shard's file name.


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the stores of a kind are called, on the disk and in messages."""

    record: str
    """The name of the JSON file."""
    head: Mapping[str, Any]
    """What the record starts with: its schema, and what else tells it from others."""
    stem: str
    """Of the shards' names."""
    name: str
    """What it is."""
    holds: str
    """What is in it, in the plural."""
    command: str
    """What makes it."""
    free: frozenset[str] = field(default=frozenset())
    """Fields of the manifest that may change while the content stays."""
    records_may_name_none: bool = False
    """Whether ard 0.1.0 wrote records that name no shards: then all that lie there count."""

    @property
    def again(self) -> str:
        """What repairs a store."""
        return f"run the same {self.command} command again"

    def to_repair(self, error: DamagedShardError) -> InputError:
        """What is told to whoever reads a damaged store."""
        return InputError(f"{error}; {self.again}")

    def shard_name(self, shard: int) -> str:
        """The file name of a shard."""
        return f"{self.stem}-{shard:06d}.safetensors"


class Expected(NamedTuple):
    """What a shard must hold."""

    shapes: dict[str, tuple[torch.dtype, tuple[int | None, ...]]]
    """Every tensor's type and shape; None where any number will do."""
    values: dict[str, Tensor]
    """The tensors that are known beforehand."""


class ShardedManifest(ABC):
    """Everything that decides a store's content; a frozen dataclass."""

    KIND: ClassVar[Kind]

    @property
    @abstractmethod
    def total(self) -> int:
        """How many trajectories, images or texts there are; a store may grow where its kind says that this is free."""

    @property
    @abstractmethod
    def num_shards(self) -> int:
        """How many shard files there are."""

    @property
    @abstractmethod
    def shard_identity(self) -> str:
        """A fingerprint that every shard carries, so that a foreign one is found."""

    @abstractmethod
    def expected(self, shard: int) -> Expected:
        """What `shard` must hold."""


AnyManifest = TypeVar("AnyManifest", bound=ShardedManifest)


def require_sizes(*, num: int, shard_size: int) -> None:
    """InputError for numbers of rows, in all and per shard, that cannot be meant."""
    require_at_least(1, {"num": num, "shard_size": shard_size})
    require_at_most(MAX_ROWS, {"shard_size": shard_size})


def read_record(cls: type[AnyManifest], folder: Path) -> tuple[AnyManifest, Checksums]:
    """The manifest of a store and its shards' checksums; InputError when `folder` is no store of this kind."""
    kind, path = cls.KIND, folder / cls.KIND.record
    if not path.is_file():
        raise InputError(f"{folder} is no {kind.name}: it has no {kind.record}, which {kind.command} writes")
    plain = read_json(path)
    head = {name: plain.pop(name, None) for name in kind.head}
    if head != kind.head:
        raise InputError(
            f"{folder} is no {kind.name} of this version of ard: its {kind.record} has {_told(head)}, not "
            f"{_told(kind.head)}"
        )
    checksums = plain.pop("shards", None)
    if checksums is None and kind.records_may_name_none:
        checksums = {
            path.name: open_shard(path).header_crc for path in sorted(folder.glob(f"{kind.stem}-*.safetensors"))
        }
    if not isinstance(checksums, dict) or not all(isinstance(value, str) for value in checksums.values()):
        raise InputError(f"{path}: shards is {str(checksums)[:80]!r}; an object with a checksum per shard is expected")
    manifest = from_plain(cls, plain, where=str(path))
    require_at_most(MAX_SHARDS, {f"{path}: the number of shards": manifest.num_shards})
    return manifest, checksums


def write_record(folder: Path, manifest: ShardedManifest, checksums: Checksums) -> None:
    """Publish the record; while `checksums` does not name every shard the store is incomplete."""
    kind = manifest.KIND
    write_json(folder / kind.record, {**kind.head, **to_plain(manifest), "shards": checksums})


def is_complete(manifest: ShardedManifest, checksums: Checksums) -> bool:
    """Whether a record names every shard."""
    return checksums.keys() == set(map(manifest.KIND.shard_name, range(manifest.num_shards)))


def open_shards(folder: Path, manifest: ShardedManifest, checksums: Checksums) -> list[Shard]:
    """Every shard of a complete store, its header checked; InputError that names the first wrong one."""
    if not is_complete(manifest, checksums):
        raise InputError(f"{folder} is incomplete; {manifest.KIND.again}")
    try:
        return [open_in_place(folder, manifest, checksums, shard) for shard in range(manifest.num_shards)]
    except DamagedShardError as error:
        raise manifest.KIND.to_repair(error) from None


def open_in_place(folder: Path, manifest: ShardedManifest, checksums: Checksums, index: int) -> Shard:
    """A shard of this store, its header being as its checksum says, with the right tensors.

    DamagedShardError when it is not so, and InputError when it is another store's.
    """
    shard = open_shard(folder / manifest.KIND.shard_name(index))
    if shard.identity != manifest.shard_identity:
        raise InputError(f"{shard.path} is foreign: it belongs to other {manifest.KIND.holds}; move it away")
    recorded = checksums.get(shard.path.name)
    if recorded is not None and recorded != shard.header_crc:
        raise DamagedShardError(f"{shard.path} is damaged or of another place: the record has another checksum for it")
    shapes = manifest.expected(index).shapes
    if shard.tensors.keys() != shapes.keys():
        raise DamagedShardError(f"{shard.path} is damaged: it does not hold the tensors of its place")
    for name, (dtype, shape) in shapes.items():
        place = shard.tensors[name]
        if place.dtype != dtype or not _fits(place.shape, shape):
            held = f"{name} of {_spelled(place.dtype, place.shape)}"
            raise OtherSizeError(f"{shard.path} holds {held}, not {_spelled(dtype, shape)}")
    return shard


def require_whole(shard: Shard, expected: Expected) -> None:
    """DamagedShardError unless the data matches its checksums and what is known beforehand of this place."""
    shard.require_undamaged()
    require_place(shard, expected)


def require_place(shard: Shard, expected: Expected) -> None:
    """DamagedShardError unless the shard holds what is known beforehand of its place, such as the seeds."""
    for name, values in expected.values.items():
        if not torch.equal(shard.read(name), values):
            raise DamagedShardError(f"{shard.path} is of another place: its {name}s are not those that belong here")


def problems_of(folder: Path, manifest: ShardedManifest, checksums: Checksums) -> list[str]:
    """Everything that is wrong with a store's files, a line each; reads them all."""
    kind, problems = manifest.KIND, []
    for shard in range(manifest.num_shards):
        try:
            require_whole(open_in_place(folder, manifest, checksums, shard), manifest.expected(shard))
        except DamagedShardError as error:
            problems.append(str(kind.to_repair(error)))
        except InputError as error:
            problems.append(str(error))
    problems += [f"{path} is foreign: no such shard belongs here" for path in _strangers(folder, manifest)]
    if not problems and not is_complete(manifest, checksums):
        problems.append(f"{folder} is incomplete: its {kind.record} lacks checksums; {kind.again}")
    return problems


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _spelled(dtype: torch.dtype, shape: tuple[int | None, ...]) -> str:
    sizes = " x ".join("any" if size is None else str(size) for size in shape)
    return f"{sizes} {str(dtype).removeprefix('torch.')}"


def _strangers(folder: Path, manifest: ShardedManifest) -> list[Path]:
    """Shard files that belong to no place of this store, nor to the same one when it is larger."""
    known = {manifest.KIND.shard_name(shard) for shard in range(manifest.num_shards)}
    return [
        path for path in sorted(folder.glob("*.safetensors")) if path.name not in known and not _is_more(path, manifest)
    ]


def _is_more(path: Path, manifest: ShardedManifest) -> bool:
    """Whether a shard is left of a time when the store was to be larger."""
    try:
        return path.name.startswith(f"{manifest.KIND.stem}-") and open_shard(path).identity == manifest.shard_identity
    except InputError:
        return False


def _told(head: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:20]}" for name, value in head.items())
