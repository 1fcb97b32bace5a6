"""Stages: `ard` commands that each make one folder, run some at a time, and a record of those that ended well."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ard.core.devices import DeviceName
from ard.core.errors import InputError
from ard.core.files import read_json, write_json
from ard.core.progress import progress_bar
from ard.core.stopping import stopping
from ard.evaluation.references import EVALUATION_SEED, REFERENCE_SEED


@dataclass(frozen=True)
class Stage:
    """One command and what it makes; OUT in its arguments, alone or before a slash, is the folder of all stages."""

    folder: str
    """The folder, or file, that it makes."""
    arguments: tuple[str, ...]
    option: str = "--out"
    """The option that takes the folder, or file."""
    computes: bool = True
    """Whether the command has --device."""
    inputs: str = ""
    """What it reads, where the arguments do not tell: a store that has grown makes other students."""

    def command(self, out: Path) -> list[str]:
        """The arguments of `ard`."""
        words = [re.sub(r"^OUT(?=/|$)", lambda _: str(out), word) for word in self.arguments]
        return [*words, self.option, str(out / self.folder)]

    @property
    def note(self) -> list[str]:
        """What the record keeps: a stage with another note is another stage."""
        return [*self.arguments, *([self.inputs] if self.inputs else [])]


class Record:
    """stages.json: which command made which folder, so that a finished stage is not even started again."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "stages.json"
        self.made: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def has(self, stage: Stage) -> bool:
        """Whether this very command has made its folder."""
        return self.made.get(stage.folder) == stage.note and (self.out / stage.folder).exists()

    def add(self, stage: Stage) -> None:
        """Note that a stage has ended well."""
        self.made[stage.folder] = stage.note
        write_json(self.path, self.made)


def run_missing(
    out: Path, stages: Sequence[Stage], *, device: DeviceName, jobs: int, title: str, tolerant: bool = False
) -> list[Stage]:
    """Run the stages that `out` has no record of, `jobs` at a time, and return them.

    InputError when one has stopped; `tolerant` leaves those out instead, and they are tried again next time. A signal
    is passed on to those that run, and ends the work by Stopped when they have ended.
    """
    record, running = Record(out), Running()
    missing = [stage for stage in stages if not record.has(stage)]
    print(f"{title}: {len(missing)} of {len(stages)} to make", flush=True)
    with (
        stopping(running.stop) as stop,
        progress_bar(len(missing), title, unit="run", line=jobs) as bar,
        closing(run_stages(out, missing, running, device=device, jobs=jobs)) as ended,
    ):
        for stage, status in ended:
            if not status:
                record.add(stage)
            elif not (tolerant or stop.asked):
                raise InputError(f"the stage {stage.folder} stopped (see above); the same command goes on from here")
            bar.update()
        stop.pause("what its stages have made is kept; the same command goes on from there")
    return missing


def run_stages(
    out: Path, stages: Sequence[Stage], running: "Running", *, device: DeviceName, jobs: int
) -> Generator[tuple[Stage, int]]:
    """Run commands, `jobs` at a time, and yield each that has ended with its exit status.

    With several jobs each gets one thread, which is fastest on a CPU. They end when this process is killed.
    """
    lines: SimpleQueue[int] = SimpleQueue()
    for line in range(jobs):
        lines.put(line)
    single = {"OMP_NUM_THREADS": "1"} if len(stages) > 1 and jobs > 1 else {}

    def run(stage: Stage) -> tuple[Stage, int]:
        line = lines.get()
        arguments = [*stage.command(out), *(["--device", device] if stage.computes else [])]
        try:
            return stage, start(arguments, {"ARD_PROGRESS_LINE": str(line), **single}, running)
        finally:
            lines.put(line)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for job in as_completed([pool.submit(run, stage) for stage in stages]):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def start(arguments: Sequence[str], environment: Mapping[str, str], running: "Running") -> int:
    """The exit status of `ard ARGUMENTS` in a process of its own, which has these variables besides this one's."""
    variables = {**os.environ, "ARD_PARENT": str(os.getpid()), **environment}
    return running.run([sys.executable, "-m", "ard", *arguments], variables)


class Running:
    """The processes that run now. Each has a session of its own, so that Ctrl-C reaches it by `stop` only, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """The exit status of a command; after a stop none is started, and it is SIGTERM's."""
        with self._lock:
            if self._stopped:
                return 128 + signal.SIGTERM
            process = subprocess.Popen(  # noqa: S603 our own
                command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
            )
            self._processes.add(process)
        status = process.wait()
        with self._lock:
            self._processes.discard(process)
        return status

    def stop(self) -> None:
        """Tell each to end; called by a signal's handler, which no thread that holds the lock waits for."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()


def digits_stages(
    *, teacher_iterations: int, num: int, num_evaluation: int, seed: int
) -> list[tuple[str, list[Stage]]]:
    """The embedded digits' teacher and its trajectories for training and evaluation, which serve every student."""
    teach = ("teach", "--data", "digits", "--iterations", str(teacher_iterations), "--seed", str(seed))
    collect = ("collect", "--teacher", "OUT/teacher", "--workers", "1", "--num")
    everything = ("--keep", "all", "--states", "x_t", "x_0_hat")
    batch = (*collect, str(num_evaluation), "--seed")
    batches = [
        Stage("trajectories-train", (*collect, str(num), "--seed", "0", *everything)),
        Stage("trajectories-evaluation", (*batch, str(EVALUATION_SEED), *everything)),
        Stage("trajectories-reference", (*batch, str(REFERENCE_SEED), "--num-steps", "1")),
    ]
    return [("teacher", [Stage("teacher", teach)]), ("trajectories", batches)]
