"""ADM's way to one size: the square at a picture's centre (Dhariwal and Nichol, 2021; DiT's, too)."""

import math
from typing import NamedTuple

from PIL import Image

REACH = 2  # Pixels on each side that bicubic interpolation reads, of the coarser of the two grids.


class Stretch(NamedTuple):
    """What the square needs of one side of a picture, in its pixels."""

    first: int
    last: int
    start: float
    """Where the square begins, from `first` on."""
    stop: float


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """A square of `size` pixels from the centre.

    The picture is halved by averaging while its short side is at least twice `size`, then made to fit by bicubic
    interpolation; one that fits already stays as it is. What the square does not show is cut away before the latter, so
    that a picture of 1 x 20,000 pixels is none of 256 x 5,120,000 meanwhile.
    """
    while min(picture.size) >= 2 * size:
        width, height = picture.size
        whole = (0.0, 0.0, float(width), float(height))
        picture = _resized(picture, (width // 2, height // 2), Image.Resampling.BOX, whole)
    scale = size / min(picture.size)
    x, y = (_stretch(side, round(side * scale), size) for side in picture.size)
    part = picture.crop((x.first, y.first, x.last, y.last))
    return _resized(part, (size, size), Image.Resampling.BICUBIC, (x.start, y.start, x.stop, y.stop))


def _stretch(side: int, full: int, size: int) -> Stretch:
    """The pixels of a side, brought to `full`, of whose middle `size` are wanted."""
    ratio, before = side / full, (full - size) // 2
    start, stop = before * ratio, min((before + size) * ratio, float(side))
    margin = math.ceil(REACH * max(ratio, 1)) + 1
    first, last = max(0, math.floor(start) - margin), min(side, math.ceil(stop) + margin)
    return Stretch(first, last, start - first, stop - first)


def _resized(
    picture: Image.Image, size: tuple[int, int], how: Image.Resampling, box: tuple[float, float, float, float]
) -> Image.Image:
    """What lies in `box`, resized across and then down: the order shows in the pixels, and Pillow would choose it."""
    left, top, right, bottom = box
    across = picture.resize((size[0], picture.height), how, (left, 0, right, picture.height))
    return across.resize(size, how, (0, top, size[0], bottom))
