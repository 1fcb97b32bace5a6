"""Making a store: every shard is a pure function of the teacher and its seeds, so any worker may make it, any time."""

import functools
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ard.condition import Condition
from ard.errors import InputError, require_at_least
from ard.models.student import StateKind
from ard.processes import die_with_parent
from ard.ranks import rank_and_world
from ard.seeds import require_seed
from ard.sharded.making import Claim, publish_shard, require_claimable
from ard.teacher import Ode, Solution, Teacher, load_teacher, noise_for_seeds, reference_to, solve_pf_ode
from ard.text import EncodedText, condition_of, open_referred, require_text
from ard.trajectories.execution import Execution, executed, relative_error
from ard.trajectories.manifest import Manifest, load_manifest
from ard.types import Latents

Progress = Callable[[int], None]  # Told how many trajectories have just been published.


def collect(folder: Path, manifest: Manifest, *, device: torch.device, workers: int, progress: Progress) -> None:
    """Make or complete the store in `folder`: shards that are there stay, the others are made.

    Shard k belongs to rank k mod world. `workers` processes share this rank's part; each computes in one thread on a
    CPU, so that the bytes do not depend on their number.
    """
    claim = Claim(folder, manifest)
    rank, world = rank_and_world()
    mine = range(rank, manifest.num_shards, world)
    missing = claim.missing(mine)
    progress(sum(manifest.rows(shard) for shard in mine if shard not in missing))
    if min(workers, len(missing)) > 1:
        _share_out(folder, manifest, missing, device, min(workers, len(missing)), progress)
    else:
        _make_in_turn(folder, manifest, missing, device, progress)
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


def solve_batch(
    teacher: Teacher, manifest: Manifest, seeds: range, text: EncodedText | None, device: torch.device
) -> Solution:
    """The trajectories of `seeds`, on the CPU in the stored precision; `text` is what the teacher reads.

    InputError when the teacher yields something that is no number.
    """
    noise, condition = _starts(manifest, seeds, text, device)
    solution = solve_pf_ode(teacher, noise, condition, ode=manifest.ode, kept=manifest.kept)
    stored = Solution(*(states.to("cpu", getattr(torch, manifest.dtype)) for states in solution))
    if not all(states.isfinite().all() for states in stored):
        raise InputError(f"the teacher {manifest.teacher.path} yields infinite or not-a-number {manifest.dtype} states")
    return stored


def with_measured_error(folder: Path, manifest: Manifest, *, device: torch.device) -> Manifest:
    """`manifest` with its `x_0_error`: that of the store in `folder`, else measured on the first batch.

    InputError when `folder` holds other trajectories.
    """
    if manifest.execution == Execution():
        return manifest
    if (folder / "manifest.json").exists():
        require_claimable(folder, manifest)
        stored, _ = load_manifest(folder)
        if stored.x_0_error is not None:
            return replace(manifest, x_0_error=stored.x_0_error)
    place = manifest.teacher.folder(folder)
    seeds = manifest.seeds(0)[: manifest.batch_size]
    noise, condition = _starts(manifest, seeds, _text_of(manifest, folder), device)
    eager, other = load_teacher(place, device), _load_once(place, device, manifest.execution)
    error = relative_error(eager, other, noise, condition, ode=manifest.ode)
    if not math.isfinite(error):
        raise InputError(f"the teacher {manifest.teacher.path} yields infinite or not-a-number images")
    return replace(manifest, x_0_error=float(f"{error:.3g}"))


def _make_in_turn(
    folder: Path, manifest: Manifest, shards: list[int], device: torch.device, progress: Progress
) -> None:
    """Make `shards` one after the other; while one is solved, a thread writes the one before it, and no more."""
    writing: Future[int] | None = None
    with ThreadPoolExecutor(1) as writer:
        for shard in shards:
            solved = _solve_shard(folder, manifest, shard, device)
            if writing:
                progress(writing.result())
            writing = writer.submit(_publish, folder, manifest, shard, solved)
        if writing:
            progress(writing.result())


def _make_shard(folder: Path, manifest: Manifest, shard: int, device: torch.device) -> int:
    """Make and publish one shard; returns its number of trajectories."""
    return _publish(folder, manifest, shard, _solve_shard(folder, manifest, shard, device))


def _solve_shard(folder: Path, manifest: Manifest, shard: int, device: torch.device) -> dict[str, Tensor]:
    """The tensors of one shard."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    teacher = _load_once(manifest.teacher.folder(folder), device, manifest.execution)
    text, seeds, size = _text_of(manifest, folder), manifest.seeds(shard), manifest.batch_size
    batches = [solve_batch(teacher, manifest, seeds[i : i + size], text, device) for i in range(0, len(seeds), size)]
    return _shard_tensors(manifest, seeds, batches)


def _publish(folder: Path, manifest: Manifest, shard: int, tensors: dict[str, Tensor]) -> int:
    """Write a shard; returns its number of trajectories."""
    publish_shard(folder, manifest, shard, tensors)
    return manifest.rows(shard)


def _starts(
    manifest: Manifest, seeds: range, text: EncodedText | None, device: torch.device
) -> tuple[Latents, Condition]:
    """The noise and the condition of each seed."""
    channels, height, width = manifest.shape
    condition = condition_of(text, manifest.labels(torch.tensor(seeds)))
    return noise_for_seeds(seeds, (channels, height, width)).to(device), condition.to(device)


def _shard_tensors(manifest: Manifest, seeds: range, batches: list[Solution]) -> dict[str, Tensor]:
    tensors = {str(state): torch.cat([getattr(batch, state) for batch in batches]) for state in manifest.states}
    seed = torch.tensor(seeds)
    return {**tensors, "seed": seed, "label": manifest.labels(seed)}


def _share_out(
    folder: Path, manifest: Manifest, shards: list[int], device: torch.device, workers: int, progress: Progress
) -> None:
    """Let `workers` processes make `shards`; the first error ends the work."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, die_with_parent, (os.getpid(),)) as pool:
        jobs = [pool.submit(_make_shard, folder, manifest, shard, device) for shard in shards]
        try:
            for job in as_completed(jobs):
                progress(job.result())
        except BrokenProcessPool:
            raise InputError("a worker process was killed; run the same command again to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _load_once(folder: Path, device: torch.device, execution: Execution) -> Teacher:
    return executed(load_teacher(folder, device), execution)


def _text_of(manifest: Manifest, folder: Path) -> EncodedText | None:
    """The prompts of a store in `folder`; None where its teacher reads none."""
    return _open_once(manifest.text, folder) if manifest.text else None


_open_once = functools.lru_cache(maxsize=1)(open_referred)
