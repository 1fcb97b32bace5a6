"""Teachers that others have published, read in their own formats: DiT, SiT, REPA, and folders of diffusers."""

from pathlib import Path

from ard.errors import InputError
from ard.published.checkpoint import read_checkpoint
from ard.published.folder import read_folder
from ard.published.tensors import Published
from ard.teacher import SourceFormat

__all__ = ["Published", "read_published"]


def read_published(source: Path, *, told: SourceFormat | None, num_heads: int | None) -> Published:
    """The teacher in `source`, a file or a folder; InputError when it is none that can be read.

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
    name = source.name or "teacher"
    raise InputError(
        f"{source} is no file or folder here, and nothing is downloaded; get a repository of the hub onto the disk "
        f"with hf download {source} --local-dir {name}, and name that folder"
    )
