"""What each mode, orientation and format of a picture becomes in 8 bits, by hand; and what is refused."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ard.core.errors import InputError
from ard.images.picture_file import read_header, read_picture


def encoded(picture: Image.Image, form: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer


def filled(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (16, 16), value)


def deep(value: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16), value, dtype=np.uint16))


def palette(**options: Any) -> io.BytesIO:
    picture = filled("P", 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(picture, "PNG", **options)


def sixteen_bit_colour() -> io.BytesIO:
    """A PNG of one pixel of 16 bits per colour, which Pillow cannot write: 0x1234, 0xABFF, 0x00FF."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + bytes.fromhex("1234abff00ff")))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


# (file, what it is as RGB, what it is as grey): 0.299 R + 0.587 G + 0.114 B, rounded.
MEANINGS: dict[str, tuple[Callable[[], io.BytesIO], tuple[int, int, int], int]] = {
    "1": (lambda: encoded(filled("1", 1), "PNG"), (255, 255, 255), 255),
    "L": (lambda: encoded(filled("L", 77), "PNG"), (77, 77, 77), 77),
    "L in a BMP": (lambda: encoded(filled("L", 77), "BMP"), (77, 77, 77), 77),
    "RGB": (lambda: encoded(filled("RGB", (200, 100, 50)), "PNG"), (200, 100, 50), 124),  # 59.8 + 58.7 + 5.7
    "RGB in WebP": (lambda: encoded(filled("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50), 124),
    "16 bits per colour": (sixteen_bit_colour, (0x12, 0xAB, 0x00), 106),  # 5.4 + 100.4 + 0
    # 128 of 255 parts of the colour, 127 of white: (100 * 128 + 255 * 127) / 255 = 177.2, and so on.
    "LA": (lambda: encoded(filled("LA", (100, 128)), "PNG"), (177, 177, 177), 177),
    "RGBA": (lambda: encoded(filled("RGBA", (200, 100, 50, 128)), "PNG"), (227, 177, 152), 189),
    "hidden colours": (lambda: encoded(filled("RGBA", (200, 100, 50, 0)), "PNG"), (255, 255, 255), 255),
    "P": (palette, (10, 20, 30), 18),  # 3.0 + 11.7 + 3.4
    "P with transparency": (lambda: palette(transparency=1), (255, 255, 255), 255),
    "P half transparent": (lambda: palette(transparency=bytes([255, 51])), (206, 208, 210), 208),  # a fifth of it
    "L with a clear grey": (lambda: encoded(filled("L", 7), "PNG", transparency=7), (255, 255, 255), 255),
    "RGB with a clear colour": (
        lambda: encoded(filled("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        (255, 255, 255),
        255,
    ),
    # (255 - C)(255 - K) / 255: 55 * 215 / 255 = 46.4, 155 * 215 / 255 = 130.7, 205 * 215 / 255 = 172.8.
    "CMYK": (lambda: encoded(filled("CMYK", (200, 100, 50, 40)), "TIFF"), (46, 131, 173), 110),
    "CMYK in a JPEG": (lambda: encoded(filled("CMYK", (200, 100, 50, 40)), "JPEG", quality=100), (46, 131, 173), 110),
    # Grey is Y itself; 100 + 1.402 * 72 = 200.9; 100 + .344 * 38 - .714 * 72 = 61.7; 100 - 1.772 * 38 = 32.7.
    "YCbCr": (lambda: encoded(filled("YCbCr", (100, 90, 200)), "TIFF"), (200, 61, 32), 100),
    "I;16": (lambda: encoded(deep(33023), "PNG"), (128, 128, 128), 128),  # 0x80FF
    "I;16 in a TIFF": (lambda: encoded(deep(33023), "TIFF"), (128, 128, 128), 128),
    "I;16 with a clear grey": (lambda: encoded(deep(33023), "PNG", transparency=33023), (255, 255, 255), 255),
    "an ICC profile": (
        lambda: encoded(filled("RGB", (200, 100, 50)), "PNG", icc_profile=profile()),
        (200, 100, 50),
        124,
    ),
}


@pytest.mark.parametrize("case", MEANINGS)
def test_a_mode_has_one_meaning(case: str) -> None:
    make, colour, grey = MEANINGS[case]
    for mode, wanted in (("RGB", colour), ("L", grey)):
        found = read_picture(make(), case, mode=mode)
        assert found.mode == mode
        assert [colour for _, colour in found.getcolors() or []] == [wanted]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientation_is_applied(form: str, orientation: int) -> None:
    """The upper half of the left side is black; where it comes to lie says which way the picture was turned."""
    stored = np.full((16, 32), 255, dtype=np.uint8)
    stored[:8, :16] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    file = encoded(Image.fromarray(stored), form, exif=exif, **options)
    upright = np.array(read_picture(file, "x", mode="L"))
    # EXIF 2.3, 4.6.4: where the stored 0th row and 0th column lie in the picture.
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert upright.shape == ((16, 32) if orientation < 5 else (32, 16))
    height, width = (side // 2 for side in upright.shape)
    wanted = np.full_like(upright, 255)
    wanted[corner[0] * height : (corner[0] + 1) * height, corner[1] * width : (corner[1] + 1) * width] = 0
    assert np.abs(upright.astype(int) - wanted).max() <= 2
    header = read_header(file, "x")
    assert (header.height, header.width) == upright.shape


def test_a_damaged_orientation_says_nothing() -> None:
    file = encoded(filled("L", 7), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_picture(file, "x", mode="L").getpixel((0, 0)) == 7


REFUSED: dict[str, tuple[Callable[[], io.BytesIO], str]] = {
    "F": (lambda: encoded(filled("F", 0.5), "TIFF"), "its mode is F"),
    "I of 32 bits": (lambda: encoded(filled("I", 70_000), "TIFF"), "its mode is I"),
    "LAB": (lambda: encoded(filled("LAB", (1, 2, 3)), "TIFF"), "its mode is LAB"),
    "PostScript": (lambda: io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "x is none of PNG, JPEG"),
    "GIF": (lambda: encoded(filled("L", 7), "GIF"), "x is none of PNG, JPEG, WebP, BMP and TIFF"),
    "nothing": (io.BytesIO, "x is none of PNG"),
    "half of it": (lambda: io.BytesIO(sixteen_bit_colour().getvalue()[:50]), "x cannot be decoded"),
    "a bomb": (
        lambda: io.BytesIO(encoded(filled("1", 0), "PNG").getvalue()[:16] + struct.pack(">II", 60_000, 60_000)),
        "x cannot be decoded",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_in_one_line(case: str) -> None:
    make, answer = REFUSED[case]
    with pytest.raises(InputError) as refusal:
        read_picture(make(), "x", mode="RGB")
    assert answer in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_program_is_started_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {witness}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError):
        read_picture(REFUSED["PostScript"][0](), "x", mode="RGB")
    assert not witness.exists()
