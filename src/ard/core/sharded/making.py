"""Making a store: the folder is claimed, what is missing or damaged is made, the record is completed."""

import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ard.core.config import differences, to_plain
from ard.core.errors import InputError
from ard.core.files import remove_leftovers
from ard.core.places import require_folder, size_of
from ard.core.progress import say
from ard.core.sharded.shard import DamagedShardError, OtherSizeError, write_shard
from ard.core.sharded.store import (
    Checksums,
    ShardedManifest,
    is_complete,
    open_in_place,
    read_record,
    require_place,
    require_whole,
    write_record,
)

KEPT = "the shards that are there are kept; the same command goes on from there"  # When a signal stops the work.


def require_claimable(folder: Path, manifest: ShardedManifest) -> None:
    """InputError unless `folder` is new, empty, or holds such a store, whole or not, and the rest fits on the disk.

    Nothing is changed.
    """
    kind = manifest.KIND
    require_folder(folder, size=_expected_bytes(manifest) - size_of(folder))
    if (folder / kind.record).exists():
        stored, checksums = read_record(type(manifest), folder)
        if changes := differences(to_plain(stored), to_plain(manifest), ignore=kind.free):
            raise InputError(f"{folder} holds other {kind.holds} ({'; '.join(changes)}); choose another folder")
        if stored.total > manifest.total and is_complete(stored, checksums):
            raise InputError(f"{folder} holds {stored.total} {kind.holds}, more than the {manifest.total} asked for")
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} holds other files and no {kind.record}; choose another --out")


def publish_shard(folder: Path, manifest: ShardedManifest, shard: int, tensors: dict[str, Tensor]) -> None:
    """Write a shard of a store that is claimed."""
    write_shard(folder / manifest.KIND.shard_name(shard), tensors, manifest.shard_identity)


def _expected_bytes(manifest: ShardedManifest) -> int:
    """About how many bytes the whole store has: as if all shards were as long as the first, and texts of one token."""
    shapes = manifest.expected(0).shapes.values() if manifest.num_shards else ()
    first = sum(math.prod(size or 1 for size in shape) * dtype.itemsize for dtype, shape in shapes)
    return first * manifest.num_shards


class Claim:
    """A folder that is the store of a manifest, while its shards are made; several ranks may hold it together."""

    def __init__(self, folder: Path, manifest: ShardedManifest) -> None:
        """What killed writers left aside is removed. InputError when the folder holds something else."""
        require_claimable(folder, manifest)
        remove_leftovers(folder)
        self.folder, self.manifest = folder, manifest
        if (folder / manifest.KIND.record).exists():
            self._succeed(*read_record(type(manifest), folder))
        else:
            write_record(folder, manifest, {})

    def missing(self, shards: Iterable[int]) -> list[int]:
        """Those of `shards` that are to be made: they are not there, or damaged, which is said.

        InputError when another store's shard is in the place of one.
        """
        checksums = self._checksums()
        missing = [shard for shard in shards if not self._is_whole(shard, checksums)]
        names = set(map(self.manifest.KIND.shard_name, missing))
        if checksums.keys() & names:  # Until they are made the store is incomplete, whatever happens.
            left = {name: value for name, value in checksums.items() if name not in names}
            write_record(self.folder, self.manifest, left)
        return missing

    def finish(self) -> None:
        """Complete the record when every shard is in its place; the last rank does it.

        What the record says of a shard is compared and never replaced. Data is not read again: the rank that a shard
        belongs to has made it, or checked it.
        """
        checksums, found = self._checksums(), dict[str, str]()
        for shard in range(self.manifest.num_shards):
            try:
                opened = open_in_place(self.folder, self.manifest, checksums, shard)
                require_place(opened, self.manifest.expected(shard))
            except DamagedShardError:
                return
            found[opened.path.name] = opened.header_crc
        if found != checksums:
            write_record(self.folder, self.manifest, found)

    def _succeed(self, stored: ShardedManifest, checksums: Checksums) -> None:
        """Bring the record up to date; shards that hold the same in both stores keep their checksums."""
        both = range(min(stored.num_shards, self.manifest.num_shards))
        same = (shard for shard in both if stored.expected(shard).shapes == self.manifest.expected(shard).shapes)
        names = map(self.manifest.KIND.shard_name, same)
        kept = {name: checksums[name] for name in names if name in checksums}
        if stored != self.manifest or kept != checksums:
            write_record(self.folder, self.manifest, kept)

    def _checksums(self) -> Checksums:
        return read_record(type(self.manifest), self.folder)[1]

    def _is_whole(self, shard: int, checksums: Checksums) -> bool:
        """Whether a shard is there and all of it is right; one that is damaged is told of."""
        if not (self.folder / self.manifest.KIND.shard_name(shard)).exists():
            return False
        try:
            opened = open_in_place(self.folder, self.manifest, checksums, shard)
            require_whole(opened, self.manifest.expected(shard))
        except OtherSizeError:  # The last shard of a store that was smaller or larger: it was right, and is replaced.
            return False
        except DamagedShardError as error:
            say(f"{error}; it is made again")
            return False
        return True
