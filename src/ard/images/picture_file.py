"""One encoded picture to 8-bit grey or RGB: which formats are read, and the one meaning that each mode has.

| mode | meaning |
|---|---|
| 1, L, RGB | as they are |
| P | the colours of its palette |
| transparency (LA, RGBA, PA; a palette's or a single colour's) | laid on white, before anything is resized |
| CMYK | (255 - C)(255 - K) / 255, and so on |
| YCbCr | JFIF's colours, truncated |
| 16 bits (I;16, and I in a PNG) | the upper 8 of them, as Pillow has it for 16 bits per colour |
| I and F in a TIFF (32 bits), all others | refused: nothing says what is white |

EXIF's orientation is applied. An ICC profile is not, nor is it by ADM, torchvision and the feature networks' own code.
Grey becomes RGB by repetition, RGB grey by ITU-R 601's weights. Of several pictures in one file the first is read.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import IO, NamedTuple, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from ard.core.errors import InputError

# Pillow is given these names, so that nothing else is tried: PostScript, for instance, is a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
READ = "PNG, JPEG, WebP, BMP and TIFF"
MAX_BYTES = 1 << 30  # Of one encoded picture.

PLAIN = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}
TRANSPARENT = {"LA", "RGBA", "PA"}
DEEP = {"I;16", "I;16B", "I;16L", "I;16N"}
GREY = {"1", "L", "LA", "I", *DEEP}
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # By EXIF's orientation.
ORIENTATION = 0x0112


class Header(NamedTuple):
    """What a picture says of itself."""

    width: int
    height: int
    grey: bool
    jpeg: bool

    @property
    def size(self) -> str:
        """Width and height for people."""
        return f"{self.width} x {self.height}"


def read_header(file: BufferedIOBase, name: str) -> Header:
    """What the picture in `file` says of itself, without decoding it; InputError that calls it `name` otherwise."""
    with _opened(file, name) as picture:
        if picture.format == "TIFF":
            picture.load()  # Whether its size is that of the upright picture before this depends on Pillow's version.
        width, height = picture.size
        if _orientation(picture) >= 5:  # These exchange the sides.
            width, height = height, width
        return Header(width, height, picture.mode in GREY, picture.format in {"JPEG", "MPO"})


def read_picture(file: BufferedIOBase, name: str, *, mode: str) -> Image.Image:
    """The picture in `file` in 8 bits as L or RGB, upright; InputError that calls it `name` otherwise."""
    with _opened(file, name) as picture:
        picture.load()  # A TIFF is turned, and loses its orientation, by this.
        turn = TURNED.get(_orientation(picture))
        plain = _on_white(_eight_bits(picture)).convert(mode)
        return plain if turn is None else plain.transpose(turn)


@contextmanager
def _opened(file: BufferedIOBase, name: str) -> Iterator[Image.Image]:
    """A picture of a mode that has a meaning, which is decoded when it is used; InputError for all others."""
    if (size := file.seek(0, io.SEEK_END)) > MAX_BYTES:
        raise InputError(f"{name} has {size} bytes; at most {MAX_BYTES} are read")
    try:
        with Image.open(cast("IO[bytes]", file), formats=FORMATS) as picture:
            _require_meaning(picture)
            yield picture
    except UnidentifiedImageError:
        raise InputError(f"{name} is none of {READ}, or damaged; repair it or take it away") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 Pillow raises what a damaged file leads it to: KeyError, struct.error …
        reason = str(error).split(" <_io")[0] or type(error).__name__
        raise InputError(f"{name} cannot be decoded ({reason}); repair it or take it away") from None


def _require_meaning(picture: Image.Image) -> None:
    """ValueError for a mode of the last row of the table."""
    if picture.mode not in PLAIN | TRANSPARENT | DEEP and (picture.format, picture.mode) != ("PNG", "I"):
        raise ValueError(f"its mode is {picture.mode}; 8 bits, or 16 bits of grey, are needed")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits of grey to their upper 8; a value that stands for transparency is one of 16 bits, too."""
    if picture.mode not in DEEP | {"I"}:
        return picture
    values = np.array(picture).astype(np.uint16)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if (clear := picture.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _on_white(picture: Image.Image) -> Image.Image:
    """Without transparency: what shines through is white."""
    if picture.mode not in TRANSPARENT and "transparency" not in picture.info:
        return picture
    full = picture.convert("RGBA")
    page = Image.new("RGB", full.size, "white")
    page.paste(full, mask=full.getchannel("A"))
    return page


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 where it is upright, unknown or damaged.

    Image's own method is called because PNG's decodes a picture that has none.
    """
    try:
        found = Image.Image.getexif(picture).get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 as above; what cannot be read says nothing
        return 1
    return found if isinstance(found, int) else 1
