"""python tests/fuzz: damage what the commands read, kill them, and tell every traceback, hang and wrong exit status."""

import argparse
import itertools
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import binaries
import command_lines
import json_fields
import kill_points
import torch
from sandbox import NOBODY, complaint, own_folder, run_in
from world import READERS, make_world

Case = tuple[str, Callable[[Path], str | None]]


def cases_of(kind: str, world: Path, seed: int) -> Iterator[Case]:
    """(name, what finds its fault in an empty folder) of the cases of a kind, in a random order."""
    match kind:
        case "json":
            yield from _damages(world, json_fields.all_damages, seed)
        case "binaries":
            yield from _damages(world, lambda *names: binaries.all_damages(*names, repeats=3), seed)
        case "lines":
            for line in command_lines.lines(seed):
                yield str(line), lambda folder, line=line: _read(world, folder, list(line.words), lambda: None)
        case "kills":
            yield from _kills(world, seed)


def _damages(world: Path, all_damages: Callable[..., Any], seed: int) -> Iterator[Case]:
    found = [
        (f"{damage} | ard {' '.join(command)}", damage, command)
        for name, commands in READERS.items()
        for damage in all_damages(world, [name])
        for command in commands
    ]
    random.Random(seed).shuffle(found)
    for name, damage, command in found:
        yield name, lambda folder, damage=damage, command=command: _read(world, folder, command, damage.apply)


def _read(world: Path, folder: Path, command: list[str], damage: Callable[[], None]) -> str | None:
    def prepare() -> None:
        _copy(world)
        damage()

    return complaint(run_in(folder, command, prepare=prepare))


def _kills(world: Path, seed: int) -> Iterator[Case]:
    points = []
    for name, command in kill_points.WRITERS.items():
        with own_folder() as root:
            folder = _new(root)
            whole = run_in(folder, command, prepare=lambda: _copy(world))
            if whole.status:
                raise RuntimeError(f"{name}: {whole.err}")
            points += [(name, at, kill_points.contents(folder / "new")) for at in range(1, whole.operations + 1)]
    random.Random(seed).shuffle(points)
    for name, at, wanted in points:
        yield (
            f"{name}: before change {at}",
            lambda folder, name=name, at=at, wanted=wanted: kill_points.killed(
                folder, kill_points.WRITERS[name], at, wanted, lambda: _copy(world)
            ),
        )


def _copy(world: Path) -> None:
    shutil.copytree(world, ".", dirs_exist_ok=True)


def _new(root: Path) -> Path:
    folder = root / "case"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


def main() -> int:
    """The exit status: 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default="json,binaries,lines,kills")
    parser.add_argument("--cases", type=int, default=2000, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    os.umask(0o022)
    torch.set_num_threads(1)
    failures = 0
    with own_folder() as top:
        world = top / "world"
        make_world(world)
        for kind in options.kinds.split(","):
            cases = (case for case in cases_of(kind, world, options.seed) if options.only in case[0])
            failures += _try(kind, cases, options.cases)
    return int(failures > 0)


def _try(kind: str, cases: Iterator[Case], count: int) -> int:
    """Run the cases, tell the faults; how many there were."""
    start, tried, faults = time.monotonic(), 0, Counter[str]()
    for name, find in itertools.islice(cases, count):
        with own_folder() as root:
            fault = find(_new(root))
        tried += 1
        if fault:
            faults[fault.partition(":")[0]] += 1
            print(f"{kind}: {name}\n    {fault}", flush=True)
    told = ", ".join(f"{number} {fault}" for fault, number in faults.items()) or "no faults"
    print(f"{kind}: {tried} cases in {time.monotonic() - start:.0f} s: {told}", flush=True)
    return sum(faults.values())


if __name__ == "__main__":
    sys.exit(main())
