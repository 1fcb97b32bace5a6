"""ard trajectories: look at a store, check a store."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.trajectories.manifest import load_manifest
from ard.trajectories.reader import verify


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Show what a trajectory store holds, or check every shard against its checksums.

    verify names each damaged, missing or foreign shard, and ends with a non-zero status if there is one. For instance:

        ard trajectories info runs/trajectories
        ard trajectories verify runs/trajectories
    """

    action: Positional[Literal["info", "verify"]]
    """info: the manifest and the size; verify: read and check everything."""
    folder: Positional[Path]
    """Folder of the store."""

    def run(self) -> None:
        """Print, or raise InputError with the first problem and how many there are."""
        manifest, checksums = load_manifest(self.folder)
        if self.action == "info":
            size = sum(path.stat().st_size for path in self.folder.glob("traj-*.safetensors"))
            complete = len(checksums) == manifest.num_shards
            facts = {"shards": manifest.num_shards, "bytes": size, "complete": complete}
            return print(json.dumps({**to_plain(manifest), **facts}, indent=2))
        if problems := verify(self.folder):
            for problem in problems[:-1]:
                print(problem)
            raise InputError(problems[-1])
        print(f"{self.folder}: {manifest.num} trajectories in {manifest.num_shards} shards, all whole")
