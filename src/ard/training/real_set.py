"""Real images from a path, for the discriminator: pictures for students of pixels, a latent cache for the others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ard.datasets.picture_set import MODES, require_classes
from ard.datasets.real import open_pictures
from ard.errors import InputError
from ard.latents import LatentCache
from ard.models.autoencoder import LatentScale
from ard.trajectories.manifest import Manifest
from ard.types import Labels, Latents


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Images in the student's own kind of state, with their labels."""

    identity: str
    """A fingerprint of the images, whatever their path is."""
    labels: Labels
    scale: LatentScale | None
    """Of a latent cache's latents."""
    draw: Callable[[Tensor, torch.Generator], Latents]
    """The images of these rows; a cache draws them from their distributions."""


def open_real_set(path: Path, trajectories: Manifest) -> RealSet:
    """The images at `path`, for students of these trajectories; InputError when they do not fit them."""
    if (path / "manifest.json").is_file():
        return _cached(path, trajectories)
    channels, size, _ = trajectories.shape
    pictures = open_pictures(path)
    if channels not in MODES:
        raise InputError(
            f"the student makes latents of {channels} channels, and {path} holds pictures; encode them once with "
            "ard images cache, and give the folder of the cache"
        )
    return RealSet(
        identity=pictures.identity,
        labels=pictures.require_classes(trajectories.num_classes),
        scale=None,
        draw=lambda ids, _: pictures.images(ids.tolist(), size=size, channels=channels),
    )


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
    return RealSet(identity=found.identity, labels=cache.labels, scale=found.scale, draw=cache.draw)
