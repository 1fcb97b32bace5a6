"""Real pictures for an evaluation: as they are where they have one size, or cut to one as ADM's references are."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ard.datasets.picture_set import PictureSet
from ard.datasets.real import is_plain_folder, open_pictures
from ard.errors import InputError, require_at_least
from ard.evaluation.images import Images, RgbPixels, open_folder, parts_of


def open_real(path: Path, *, size: int | None) -> Images:
    """The pictures at `path`, cut to squares of `size` pixels; for None as they are, which must be of one size.

    Those of tars and saved data sets must be square, too.
    """
    if size is None and is_plain_folder(path):
        return open_folder(path)
    pictures = open_pictures(path)
    if size is None:
        return _as_they_are(pictures)
    require_at_least(1, {"size": size})
    return _squares(pictures, size, {"greyscale": 0, "jpeg": 0, "cut_to": size})


def _as_they_are(pictures: PictureSet) -> Images:
    """Squares of one size; InputError that names the first picture that is none."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(pictures.header, range(pictures.count)))
    side = headers[0].width
    for index, (width, height, _, _) in enumerate(headers):
        if (width, height) != (side, side):
            raise InputError(
                f"{pictures.name_of(index)} has {width} x {height} pixels, not {side} x {side}; cut all pictures to "
                "one size with --size"
            )
    greyscale = sum(header.mode in {"L", "1"} for header in headers)
    return _squares(pictures, side, {"greyscale": greyscale, "jpeg": sum(header.jpeg for header in headers)})


def _squares(pictures: PictureSet, size: int, facts: dict[str, Any]) -> Images:
    def batches(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
        return (pictures.pixels(part, size=size, channels=3) for part in parts_of(rows, batch_size))

    origin = {"path": str(pictures.path), "kind": pictures.kind}
    return Images(count=pictures.count, height=size, width=size, batches=batches, facts={**origin, **facts})
