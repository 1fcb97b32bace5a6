"""Real images from a path, for the discriminator: pictures for students of pixels, a latent cache for the others."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ard.core.config import fingerprint_of
from ard.core.errors import InputError
from ard.core.files import read_json
from ard.core.types import Labels, Latents
from ard.images.latent_cache import LatentCache
from ard.images.picture_set import MODES, PictureSet, require_classes
from ard.images.real import open_pictures
from ard.networks.autoencoder import LatentScale
from ard.trajectories.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Images in the student's own kind of state, with their labels."""

    identity: dict[str, Any]
    """What the images are, whatever their path is."""
    summary: str
    """What people are told of them, before the work."""
    labels: Labels
    scale: LatentScale | None
    """Of a latent cache's latents."""
    draw: Callable[[Tensor, torch.Generator], Latents]
    """The images of these rows; a cache draws them from their distributions."""


def open_real_set(path: Path, trajectories: Manifest, open_at: Callable[[Path], PictureSet] = open_pictures) -> RealSet:
    """The images at `path`, for students of these trajectories; InputError when they do not fit them.

    `open_at` opens them where they are no latent cache.
    """
    if (path / "manifest.json").is_file():
        return _cached(path, trajectories)
    channels, size, _ = trajectories.shape
    if path.exists() and channels not in MODES:
        raise InputError(
            f"the student makes latents of {channels} channels, and {path} holds pictures; encode them once with "
            "ard images cache, and give the folder of the cache"
        )
    pictures = open_at(path)
    return RealSet(
        identity={
            "classes": fingerprint_of([pictures.num_classes, list(pictures.class_names)]),
            "num": pictures.count,
            "sketch": list(pictures.sketch()),
        },
        summary=pictures.summary,
        labels=pictures.require_classes(trajectories.num_classes),
        scale=None,
        draw=lambda ids, _: pictures.images(ids.tolist(), size=size, channels=channels),
    )


def known_as(real: RealSet, out: Path) -> dict[str, Any]:
    """What the run in `out` calls these images: as when it began while they are the same but for a few.

    So a picture may be repaired or taken away while a run is under way; that there are fewer is said.
    """
    path = out / "run.json"
    stored = read_json(path).get("adversary", {}) if path.exists() else {}
    before, now = stored.get("real") if isinstance(stored, dict) else None, real.identity
    if before == now or not (isinstance(before, dict) and _resemble(before, now)):
        return now
    print(
        f"the real pictures are others than when this run began: {before['num']} then, {now['num']} now",
        file=sys.stderr,
    )
    return before


def _resemble(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two sets of pictures have the same classes, and half of their names in common by their sketches."""
    if before.keys() != now.keys() or "sketch" not in now or before["classes"] != now["classes"]:
        return False
    both = sorted({*before["sketch"], *now["sketch"]})[: len(now["sketch"])]
    shared = [name for name in both if name in before["sketch"] and name in now["sketch"]]
    return 2 * len(shared) >= len(both)


def _cached(folder: Path, trajectories: Manifest) -> RealSet:
    """A latent cache; InputError when its latents have another shape or other classes."""
    cache = LatentCache(folder)
    found = cache.manifest
    if found.shape != trajectories.shape:
        raise InputError(
            f"{folder} holds latents of the shape {found.shape}, the student's states have {trajectories.shape}; make "
            "a cache with another --size, or with the autoencoder of the teacher"
        )
    require_classes(folder, found.num_classes, trajectories.num_classes, named=bool(found.class_names))
    identity = {"latents": found.identity, "num": found.num}
    told = f"{folder}: latents of {found.num} pictures of {found.num_classes} classes"
    return RealSet(identity=identity, summary=told, labels=cache.labels, scale=found.scale, draw=cache.draw)
