"""Real pictures for an evaluation: as they are where they have one size, or cut to one as ADM's references are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from ard.core.errors import InputError, require_at_least
from ard.evaluation.images import Images, RgbPixels, parts_of
from ard.images.look import Check, look_over
from ard.images.picture_file import Header
from ard.images.picture_set import PictureSet, in_threads
from ard.images.real import USUAL, Columns


def open_real(path: Path, *, size: int | None, columns: Columns = USUAL, check: Check = Check.SAMPLE) -> Images:
    """The pictures at `path`, cut to squares of `size` pixels; for None as they are, which must be of one size."""
    pictures, headers = look_over(path, columns, check, classes=False)
    if size is None:
        return _as_they_are(pictures, headers)
    require_at_least(1, {"size": size})

    def batches(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
        return (pictures.pixels(part, size=size, channels=3) for part in parts_of(rows, batch_size))

    facts = {**_facts(pictures, []), "cut_to": size}  # Resizing leaves little of what JPEG does.
    told = pictures.summary
    return Images(count=pictures.count, height=size, width=size, batches=batches, facts=facts, summary=told)


def _as_they_are(pictures: PictureSet, headers: Sequence[Header]) -> Images:
    """Pictures of one size; InputError that names the first that has another."""
    first = headers[0]
    for index, header in enumerate(headers):
        if header.size != first.size:
            raise InputError(
                f"{pictures.name_of(index)} has {header.size} pixels, {pictures.name_of(0)} has {first.size}; cut all "
                "pictures to one size with --size"
            )

    def decoded(index: int) -> UInt8[Tensor, "height width 3"]:
        picture = pictures.picture(index, "RGB")
        if picture.size != (first.width, first.height):  # Changed meanwhile, or EXIF behind the pixels turns it.
            raise InputError(f"{pictures.name_of(index)} has not the {first.size} pixels of its header; make it again")
        return torch.from_numpy(np.array(picture))

    def batches(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
        return (torch.stack(list(in_threads(decoded, part))) for part in parts_of(rows, batch_size))

    return Images(
        count=pictures.count,
        height=first.height,
        width=first.width,
        batches=batches,
        facts=_facts(pictures, headers),
        summary=pictures.summary,
    )


def _facts(pictures: PictureSet, headers: Sequence[Header]) -> dict[str, object]:
    """Where they come from, and what keeps a number on them from being compared."""
    return {
        "path": str(pictures.path),
        "kind": pictures.kind,
        "greyscale": sum(header.grey for header in headers),
        "jpeg": sum(header.jpeg for header in headers),
    }
