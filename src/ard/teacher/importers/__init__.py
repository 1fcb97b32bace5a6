"""Teachers that others have published, read in their own formats: DiT, SiT, REPA, PixArt, and folders of diffusers."""

import os
from dataclasses import replace
from pathlib import Path

from ard.core.errors import InputError
from ard.networks.autoencoder import AutoencoderCard, read_autoencoder
from ard.teacher.importers.checkpoint import read_checkpoint
from ard.teacher.importers.choice import Choice
from ard.teacher.importers.folder import read_folder
from ard.teacher.importers.hub import fetch_repository, missing, repository_of
from ard.teacher.importers.tensors import Published
from ard.teacher.teacher import SourceFormat

__all__ = ["Choice", "Published", "local_source", "read_published"]


def read_published(source: Path, choice: Choice) -> Published:
    """The teacher in `source`, a file, a folder or hub:OWNER/NAME; InputError when none can be read there."""
    published = _read(source, choice)
    return published if choice.vae is None else _of_latents(published, read_autoencoder(choice.vae))


def local_source(source: Path) -> Path:
    """Where a source is on this machine, once it was read."""
    return fetch_repository(name) if (name := repository_of(source)) else source


def _of_latents(published: Published, autoencoder: AutoencoderCard) -> Published:
    """The same with its autoencoder; InputError when that one's latents have other channels."""
    card, scale = published.card, autoencoder.scale
    assert card.imported is not None  # noqa: S101 whatever is read here was imported
    if autoencoder.latent_channels != card.network.channels:
        raise InputError(
            f"the autoencoder in {autoencoder.folder} has latents of {autoencoder.latent_channels} channels, and "
            f"{card.imported.source} has {card.network.channels}; give --vae the one that it was trained with"
        )
    imported = replace(
        card.imported,
        vae=os.fspath(autoencoder.folder.resolve()),
        scaling_factor=scale.scaling_factor,
        shift_factor=scale.shift_factor or None,
    )
    return published._replace(card=replace(card, imported=imported))


def _read(source: Path, choice: Choice) -> Published:
    if choice.format is SourceFormat.OTHER:
        raise InputError(
            "--format other: another architecture is brought by its own code, see docs/add-your-teacher.md"
        )
    if name := repository_of(source):
        return _named(_read(fetch_repository(name), choice), name)
    if source.is_dir():
        needless = choice.of_a_checkpoint()
        if choice.format not in {None, SourceFormat.DIFFUSERS}:
            needless.append("--format")
        if needless:
            raise InputError(
                f"{source} is a folder, whose own config.json says what it is; leave out {', '.join(needless)}"
            )
        return read_folder(source, choice.lora)
    if not source.exists():
        raise missing(source)
    if choice.format is SourceFormat.DIFFUSERS:
        raise InputError(f"{source} is a file; --format diffusers takes a folder, as diffusers saves it")
    return read_checkpoint(source, choice)


def _named(published: Published, name: str) -> Published:
    """The same with the repository's name for its source, in place of the cache's."""
    card = published.card
    assert card.imported is not None  # noqa: S101 whatever is read here was imported
    return published._replace(card=replace(card, imported=replace(card.imported, source=name)))
