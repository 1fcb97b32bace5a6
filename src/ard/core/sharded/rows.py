"""Reading shards in any order: few files are open at a time, and each is checked when it is first read."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ard.core.sharded.shard import DamagedShardError, OpenShard, Shard
from ard.core.sharded.store import Kind

OPEN_FILES = 32  # Per store; a process may have 1,024, and a store of ImageNet's size has 10,000 shards.


class Shards:
    """The shards of a store, opened when they are read. Any thread may read."""

    def __init__(self, shards: Sequence[Shard], kind: Kind) -> None:
        self.shards, self._kind = shards, kind
        # One that is let go closes itself, once no thread reads it any more.
        self._opened = functools.lru_cache(maxsize=OPEN_FILES)(lambda shard: OpenShard(shards[shard]))

    def tensor(self, shard: int, name: str) -> Tensor:
        """A whole tensor of a shard; InputError when the shard is missing or damaged."""
        return self._open(shard).tensor(name)

    def rows(self, name: str, ids: Tensor, *, shard_size: int) -> Tensor:
        """The rows `ids` of a tensor that all shards have, `shard_size` rows in each, in that order.

        InputError when one of their shards is missing or damaged.
        """
        place = self.shards[0].tensors[name]
        order = ids.numpy()
        data = np.empty((len(order), place.row_bytes), dtype=np.uint8)
        which = order // shard_size
        for shard in np.unique(which).tolist():
            file, offset = self._open(shard), self.shards[shard].tensors[name].offset
            for row in np.flatnonzero(which == shard).tolist():
                file.read_into(data[row].data, offset + int(order[row] % shard_size) * place.row_bytes)
        return torch.from_numpy(data).view(-1).view(place.dtype).view(len(order), *place.shape[1:])

    def _open(self, index: int) -> OpenShard:
        try:
            self.shards[index].require_undamaged()
            return self._opened(index)
        except DamagedShardError as error:
            raise self._kind.to_repair(error) from None
