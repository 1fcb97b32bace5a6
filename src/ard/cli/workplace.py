"""Where a command works: one process in one folder, several only where ranks share the work."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ard.core.places import require_folder
from ard.core.processes import working_in
from ard.core.ranks import rank_and_world, require_one_process

# Commands that fill a folder or make a file, and the attribute that names it.
ALONE = {
    "teach": "out",
    "teacher import": "out",
    "text encode": "out",
    "distill": "out",
    "sample": "out",
    "export": "out",
    "sweep": "out",
    "reproduce": "folder",
    "demo": "out",
    "analyze attention": "out",
    "analyze convergence": "out",
    "analyze errors": "out",
    "analyze masks": "out",
    "analyze pareto": "out",
    "analyze solvers": "out",
}
SHARED = {"collect": "out", "images cache": "out"}  # Shard k belongs to rank k mod world.


@contextmanager
def workplace(verb: str, command: Any) -> Iterator[None]:
    """The folder of `ard VERB` held while the block runs; InputError for another process in it, and for ranks."""
    if verb not in ALONE | SHARED:
        yield
        return
    if verb in ALONE:
        require_one_process(f"ard {verb}")
    folder: Path | None = getattr(command, (ALONE | SHARED)[verb])
    if command.dry_run or folder is None or (folder.exists() and not folder.is_dir()):
        yield
        return
    require_folder(folder)
    with working_in(folder, shared=rank_and_world()[1] > 1):
        yield
