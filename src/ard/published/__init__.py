"""Teachers that others have published, read in their own formats: DiT, SiT, REPA, PixArt, and folders of diffusers."""

from dataclasses import replace
from pathlib import Path

from ard.errors import InputError
from ard.published.checkpoint import read_checkpoint
from ard.published.choice import Choice
from ard.published.folder import read_folder
from ard.published.hub import fetch_repository, missing, repository_of
from ard.published.tensors import Published
from ard.teacher import SourceFormat

__all__ = ["Choice", "Published", "read_published"]


def read_published(source: Path, choice: Choice) -> Published:
    """The teacher in `source`, a file, a folder or hub:OWNER/NAME; InputError when none can be read there."""
    if choice.format is SourceFormat.OTHER:
        raise InputError(
            "--format other: another architecture is brought by its own code, see docs/add-your-teacher.md"
        )
    if name := repository_of(source):
        return _named(read_published(fetch_repository(name), choice), name)
    if source.is_dir():
        needless = choice.of_a_checkpoint()
        if choice.format not in {None, SourceFormat.DIFFUSERS}:
            needless.append("--format")
        if needless:
            raise InputError(
                f"{source} is a folder, whose own config.json says what it is; leave out {', '.join(needless)}"
            )
        return read_folder(source)
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
