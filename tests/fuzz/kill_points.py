"""Kills: a command that was killed before a change of a file, and then runs again, gives what it gives undisturbed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import complaint, run_in
from world import COLLECT, CPU, DISTILL, KEPT, READERS, TEACH

# What writes: what it writes to, and the command.
WRITERS: dict[str, list[str]] = {
    "teach": ["teach", "--out", "new", *TEACH, "--checkpoint-every", "2"],
    "collect": ["collect", "--teacher", "teacher", "--out", "new", *COLLECT],
    "distill": ["distill", "--trajectories", "store", "--out", "new", *DISTILL],
    "distill with checkpoints": [
        "distill",
        "--trajectories",
        "store",
        "--out",
        "new",
        *KEPT,
        "--keep-checkpoints",
        "1",
    ],
    "sample": ["sample", "--student", "student", "--out", "new/grid.png", "--labels", "0-1", "--seeds", "0-1", *CPU],
    "teacher import": ["teacher", "import", "DiT.pt", "--num-heads", "2", "--out", "new"],
    "text encode": READERS["prompts.txt"][0],
    "images cache": READERS["vae"][0],
    "export": READERS["student"][2],
}
VOLATILE = re.compile(r"seconds|time|date|per_second|path|throughput", re.IGNORECASE)

Contents = dict[str, bytes | str]


def contents(folder: Path) -> Contents:
    """Every file below `folder`; of JSON what does not depend on the clock.

    Not the empty file of a lock: the lock ends with the process, and the file may stay behind a kill.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def killed(folder: Path, command: list[str], kill_at: int, wanted: Contents, prepare: Callable[[], None]) -> str | None:
    """What is wrong after a kill before change `kill_at` and a second run; None when all is as `wanted`."""
    run_in(folder, command, prepare=prepare, kill_at=kill_at)
    again = run_in(folder, command)
    if again.status != 0:
        return complaint(again) or f"refuses to go on: {again.err.strip()[-300:]}"
    found = contents(folder / "new")
    wrong = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    return f"differs: {', '.join(wrong)}" if wrong else None


def _content(path: Path) -> bytes | str:
    if path.suffix == ".json":
        return json.dumps(_steady(json.loads(path.read_text())))
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(_steady(json.loads(line))) for line in path.read_text().splitlines())
    data = path.read_bytes()
    if path.suffix == ".safetensors":  # Metadata say how long the training took.
        end = 8 + int.from_bytes(data[:8], "little")
        names = {name: value for name, value in json.loads(data[8:end]).items() if name != "__metadata__"}
        return json.dumps(names).encode() + data[end:]
    return data


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(below) for key, below in value.items() if not VOLATILE.search(key)}
    return [_steady(below) for below in value] if isinstance(value, list) else value
