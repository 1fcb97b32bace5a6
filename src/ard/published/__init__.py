"""Teachers that others have published, read in their own formats: DiT, SiT, REPA, and folders of diffusers."""

from dataclasses import replace
from pathlib import Path

from ard.errors import InputError
from ard.published.checkpoint import read_checkpoint
from ard.published.folder import read_folder
from ard.published.hub import fetch_repository, is_repository
from ard.published.tensors import Published
from ard.teacher import SourceFormat

__all__ = ["Published", "read_published"]


def read_published(source: Path, *, told: SourceFormat | None, num_heads: int | None) -> Published:
    """The teacher in `source`, a file, a folder or a repository of the hub; InputError when none can be read there.

    `told` and `num_heads` say what a checkpoint's tensors do not show; None: what can be recognised.
    """
    if told is SourceFormat.OTHER:
        raise InputError(
            "--format other: another architecture is brought by its own code, see docs/add-your-teacher.md"
        )
    if source.is_dir():
        if told not in {None, SourceFormat.DIFFUSERS} or num_heads is not None:
            raise InputError(
                f"{source} is a folder, whose own config.json says what it is; leave out --format, --num-heads"
            )
        return read_folder(source)
    if source.is_file():
        if told is SourceFormat.DIFFUSERS:
            raise InputError(f"{source} is a file; --format diffusers takes a folder, as diffusers saves it")
        return read_checkpoint(source, told=told, num_heads=num_heads)
    if is_repository(source):
        folder = fetch_repository(str(source))
        return _named(read_published(folder, told=told, num_heads=num_heads), str(source))
    raise InputError(f"{source} is no file or folder here; name one, or a repository of the hub as OWNER/NAME")


def _named(published: Published, name: str) -> Published:
    """The same with the repository's name for its source, in place of the cache's."""
    card = published.card
    assert card.imported is not None  # noqa: S101 whatever is read here was imported
    return published._replace(card=replace(card, imported=replace(card.imported, source=name)))
