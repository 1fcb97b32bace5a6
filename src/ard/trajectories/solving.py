"""Solving a shard's trajectories, batch after batch."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.types import Latents
from ard.networks.condition import Condition
from ard.teacher.teacher import Solution, Teacher, noise_for_seeds, solve_pf_ode
from ard.text.encoded import EncodedText, condition_of, open_referred
from ard.trajectories.manifest import Manifest

Progress = Callable[[int], object]  # Told how many trajectories more are there: published before, or solved just now.


def solve_batch(
    teacher: Teacher, manifest: Manifest, seeds: range, text: EncodedText | None, device: torch.device
) -> Solution:
    """The trajectories of `seeds`, on the CPU in the stored precision; `text` is what the teacher reads.

    InputError when the teacher yields something that is no number.
    """
    noise, condition = starts(manifest, seeds, text, device)
    solution = solve_pf_ode(teacher, noise, condition, ode=manifest.ode, kept=manifest.kept)
    stored = Solution(*(states.to("cpu", getattr(torch, manifest.dtype)) for states in solution))
    if not all(states.isfinite().all() for states in stored):
        raise InputError(f"the teacher {manifest.teacher.path} yields infinite or not-a-number {manifest.dtype} states")
    return stored


def starts(
    manifest: Manifest, seeds: range, text: EncodedText | None, device: torch.device
) -> tuple[Latents, Condition]:
    """The noise and the condition of each seed."""
    channels, height, width = manifest.shape
    condition = condition_of(text, manifest.labels(torch.tensor(seeds)))
    return noise_for_seeds(seeds, (channels, height, width)).to(device), condition.to(device)


def solve_shard(
    teacher: Teacher,
    manifest: Manifest,
    shard: int,
    text: EncodedText | None,
    device: torch.device,
    *,
    pause: Callable[[], object],
    told: Progress,
) -> dict[str, Tensor]:
    """The tensors of one shard; `pause` is called before each batch and may raise, `told` after each."""
    seeds, batches = manifest.seeds(shard), []
    for start in range(0, len(seeds), manifest.batch_size):
        pause()
        part = seeds[start : start + manifest.batch_size]
        batches.append(solve_batch(teacher, manifest, part, text, device))
        told(len(part))
    tensors = {str(state): torch.cat([getattr(batch, state) for batch in batches]) for state in manifest.states}
    seed = torch.tensor(seeds)
    return {**tensors, "seed": seed, "label": manifest.labels(seed)}


def text_of(manifest: Manifest, folder: Path) -> EncodedText | None:
    """The prompts of a store in `folder`; None where its teacher reads none."""
    return _open_once(manifest.text, folder) if manifest.text else None


_open_once = functools.lru_cache(maxsize=1)(open_referred)
