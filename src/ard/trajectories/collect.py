"""Making a store: every shard is a pure function of the teacher and its seeds, so any worker may make it, any time."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from ard.core.devices import one_thread
from ard.core.errors import InputError, require_at_least
from ard.core.ranks import rank_and_world
from ard.core.seeds import require_seed
from ard.core.sharded.making import KEPT, Claim, publish_shard, require_claimable
from ard.core.stopping import Stop, stopping
from ard.student.student import StateKind
from ard.teacher.teacher import Ode, Teacher, reference_to
from ard.text.encoded import EncodedText, require_text
from ard.trajectories.execution import Execution, relative_error
from ard.trajectories.manifest import Manifest, load_manifest
from ard.trajectories.solving import Progress, solve_shard, starts, text_of
from ard.trajectories.workers import share_out


def collect(
    folder: Path, manifest: Manifest, teacher: Teacher, *, device: torch.device, workers: int, progress: Progress
) -> None:
    """Make or complete the store in `folder`: shards that are there stay, the others are made.

    `teacher` runs as the manifest says. Shard k belongs to rank k mod world. `workers` processes share this rank's
    part; each computes in one thread on a CPU, so that the bytes do not depend on their number. A signal ends the work
    by Stopped before the next batch.
    """
    claim = Claim(folder, manifest)
    rank, world = rank_and_world()
    mine = range(rank, manifest.num_shards, world)
    missing = claim.missing(mine)
    progress(sum(manifest.rows(shard) for shard in mine if shard not in missing))
    with stopping() as stop, one_thread(device):
        if min(workers, len(missing)) > 1:
            share_out(folder, manifest, missing, device, min(workers, len(missing)), stop, progress, kept=KEPT)
        else:
            _make_in_turn(folder, manifest, teacher, missing, device, stop, progress)
    claim.finish()


def plan_store(  # noqa: PLR0913 they are the manifest's fields
    folder: Path,
    teacher_folder: Path,
    teacher: Teacher,
    ode: Ode,
    *,
    kept: tuple[int, ...],
    states: tuple[StateKind, ...],
    num: int,
    first_seed: int,
    dtype: str = "float16",
    shard_size: int = 256,
    batch_size: int = 128,
    execution: Execution | None = None,
    text: EncodedText | None = None,
) -> Manifest:
    """The manifest of a store that is to be made; InputError for numbers that cannot be meant."""
    max_tokens = teacher.imported.max_tokens if teacher.imported else None
    require_text(text, teacher.network.config, owner=teacher_folder, max_tokens=max_tokens)
    require_at_least(1, {"num": num, "shard_size": shard_size, "batch_size": batch_size})
    require_seed("seed", first_seed)
    require_seed(f"the last of {num} seeds from {first_seed} on", first_seed + num - 1)
    shape = teacher.network.config
    return Manifest(
        teacher=reference_to(teacher, teacher_folder, seen_from=folder),
        diffusion=teacher.diffusion,
        ode=ode,
        kept=kept,
        states=tuple(sorted(set(states))),
        dtype=dtype,
        shape=(shape.channels, shape.latent_size, shape.latent_size),
        num_classes=shape.num_classes,
        first_seed=first_seed,
        num=num,
        shard_size=shard_size,
        batch_size=batch_size,
        execution=execution or Execution(),
        text=None if text is None else text.reference(seen_from=folder),
    )


def with_measured_error(
    folder: Path, manifest: Manifest, teacher: Teacher, other: Teacher, *, device: torch.device
) -> Manifest:
    """`manifest` with its `x_0_error`: that of the store in `folder`, else measured on the first batch.

    `other` is `teacher`, run as the manifest says. InputError when `folder` holds other trajectories.
    """
    if manifest.execution == Execution():
        return manifest
    if (folder / "manifest.json").exists():
        require_claimable(folder, manifest)
        stored, _ = load_manifest(folder)
        if stored.x_0_error is not None:
            return replace(manifest, x_0_error=stored.x_0_error)
    seeds = manifest.seeds(0)[: manifest.batch_size]
    noise, condition = starts(manifest, seeds, text_of(manifest, folder), device)
    error = relative_error(teacher, other, noise, condition, ode=manifest.ode)
    if not math.isfinite(error):
        raise InputError(f"the teacher {manifest.teacher.path} yields infinite or not-a-number images")
    return replace(manifest, x_0_error=float(f"{error:.3g}"))


def _make_in_turn(
    folder: Path,
    manifest: Manifest,
    teacher: Teacher,
    shards: list[int],
    device: torch.device,
    stop: Stop,
    progress: Progress,
) -> None:
    """Make `shards` one after the other; while one is solved, a thread writes the one before it, and no more."""
    text = text_of(manifest, folder)
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for shard in shards:
            solved = solve_shard(teacher, manifest, shard, text, device, pause=lambda: stop.pause(KEPT), told=progress)
            if writing:
                writing.result()
            writing = writer.submit(publish_shard, folder, manifest, shard, solved)
        if writing:
            writing.result()
