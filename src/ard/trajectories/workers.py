"""Processes that share the shards of a store. Signals reach the parent only, which tells them through a pipe."""

import functools
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.core.processes import die_with_parent
from ard.core.sharded.making import publish_shard
from ard.core.stopping import Stop, Stopped, undisturbed_start
from ard.teacher.teacher import Teacher, load_teacher
from ard.trajectories.execution import executed
from ard.trajectories.manifest import Manifest
from ard.trajectories.solving import Progress, solve_shard, text_of

TICK = 0.2  # Seconds between two looks at who has ended.


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each worker is started with."""

    folder: Path
    manifest: Manifest
    device: torch.device
    told: Connection
    """Takes the number of trajectories that were just solved."""
    end: Connection
    """Is at its end when the work shall end: the parent has closed the other one, or is no more."""

    @functools.cached_property
    def teacher(self) -> Teacher:
        """The teacher as the manifest runs it; InputError when it is another one by now."""
        place = self.manifest.teacher.folder(self.folder)
        teacher = load_teacher(place, self.device)
        if teacher.hash != self.manifest.teacher.hash:
            raise InputError(f"the teacher in {place} has changed meanwhile; run the same command again")
        return executed(teacher, self.manifest.execution)

    def pause(self) -> None:
        """Raise KeyboardInterrupt when the work shall end."""
        if self.end.poll():
            raise KeyboardInterrupt


def share_out(
    folder: Path,
    manifest: Manifest,
    shards: list[int],
    device: torch.device,
    workers: int,
    stop: Stop,
    progress: Progress,
    *,
    kept: str,
) -> None:
    """Let `workers` processes make `shards`; the first error, or a signal, ends the work before the next batches."""
    context = multiprocessing.get_context("spawn")
    (heard, told), (end, still_wanted) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    work = Work(folder=folder, manifest=manifest, device=device, told=told, end=end)
    before = multiprocessing.active_children()
    resource_tracker.ensure_running()  # Its start would let the signals through again.
    with undisturbed_start():
        pool = ProcessPoolExecutor(workers, context, _start, (os.getpid(), work))
        jobs = [pool.submit(_make, shard) for shard in shards]
    try:
        try:
            _watch(jobs, heard, stop, progress)
        finally:
            still_wanted.close()
            pool.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        raise InputError("a worker process was killed; run the same command again to go on") from None
    except Stopped:  # The second signal, which waits for no batch.
        for process in set(multiprocessing.active_children()) - set(before):
            process.kill()
        raise
    stop.pause(kept)


def _watch(jobs: "list[Future[None]]", heard: Connection, stop: Stop, progress: Progress) -> None:
    """Tell the progress until all jobs have ended, one has failed or a signal has come; raise what one has raised."""
    waiting = set(jobs)
    while waiting and not stop.asked:
        if heard.poll(TICK):
            progress(heard.recv())
        done, waiting = wait(waiting, timeout=0)
        for job in done:
            job.result()
    while heard.poll():
        progress(heard.recv())


_work: Work  # What this process was started with, where it is a worker.


def _start(parent: int, work: Work) -> None:
    global _work  # noqa: PLW0603 a worker is a process of its own
    die_with_parent(parent)
    if work.device.type == "cpu":
        torch.set_num_threads(1)
    elif work.device.index is not None:
        torch.cuda.set_device(work.device)
    _work = work


def _make(shard: int) -> None:
    """Make and publish one shard, in a worker."""
    work = _work
    work.pause()
    text = text_of(work.manifest, work.folder)
    tensors = solve_shard(work.teacher, work.manifest, shard, text, work.device, pause=work.pause, told=work.told.send)
    publish_shard(work.folder, work.manifest, shard, tensors)
