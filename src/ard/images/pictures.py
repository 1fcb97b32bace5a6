"""Latents or images in [-1, 1] to 8-bit pictures, sheets and sample files."""

import io
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ard.core.errors import InputError
from ard.core.marks import PROVENANCE, npz_mark
from ard.core.types import Latents

Pixels = UInt8[Tensor, "batch height width channel"]

GAP = 2
CAPTION_SIZE, CAPTION_LINE, CAPTION_LINES = 11, 14, 3  # Pixels, pixels, and at most so many lines.
DOTS = "..."
NOT_WRITTEN = {
    *(".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".pdf"),
    *(".npy", ".pt", ".safetensors", ".zip", ".tar", ".gz", ".json", ".txt"),
}


def to_pixels(images: Latents) -> Pixels:
    """8-bit pixels as ADM makes them: 127.5 x + 128, cut to 0 … 255 and truncated."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_pictures(pixels: Pixels) -> list[Image.Image]:
    """Each as a picture of its own, grey for one channel."""
    return [_picture(image) for image in pixels]


def sheet(pixels: Pixels, *, columns: int, scale: int = 1, gap: int = 1) -> Image.Image:
    """Pictures side by side, row after row, each enlarged `scale` times, with a gap between them."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    canvas = torch.full((rows, columns, height * scale + gap, width * scale + gap, channels), 255, dtype=torch.uint8)
    large = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    canvas.view(-1, *canvas.shape[2:])[:count, gap:, gap:] = large
    page = canvas.permute(0, 2, 1, 3, 4).reshape(canvas.shape[0] * canvas.shape[2], -1, channels)
    return _picture(page)


def labelled_sheet(labels: Sequence[str], rows: Sequence[Pixels], *, scale: int) -> Image.Image:
    """One row of pictures per label, the label at its left."""
    font = ImageFont.load_default(13)
    strips = [sheet(row, columns=len(row), scale=scale, gap=2).convert("RGB") for row in rows]
    margin = 12 + max(round(font.getlength(label)) for label in labels)
    width, height = margin + strips[0].width, strips[0].height
    page = Image.new("RGB", (width, height * len(strips)), "white")
    draw = ImageDraw.Draw(page)
    for index, (label, strip) in enumerate(zip(labels, strips, strict=True)):
        page.paste(strip, (margin, index * height))
        draw.text((6, index * height + height / 2), label, fill="black", font=font, anchor="lm")
    return page


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as a PNG file's content."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def samples_sheet(pixels: Pixels, captions: Sequence[str] = ()) -> Image.Image:
    """A sheet of at least eight columns where there are pictures for them, small ones enlarged; captions below each."""
    count, height, _, _ = pixels.shape
    columns = min(count, max(8, round(count**0.5)))
    if not captions:
        return sheet(pixels, columns=columns, scale=max(1, 64 // height), gap=2)
    return captioned_sheet(pixels, captions, columns=columns, scale=max(1, 128 // height))


def captioned_sheet(pixels: Pixels, captions: Sequence[str], *, columns: int, scale: int) -> Image.Image:
    """Pictures side by side, row after row, each enlarged `scale` times, with its caption below it."""
    font = ImageFont.load_default(CAPTION_SIZE)
    side = (pixels.shape[2] * scale, pixels.shape[1] * scale)
    texts = [wrapped(caption, float(side[0]), font.getlength) for caption in captions]
    cell = (side[0] + GAP, side[1] + GAP + CAPTION_LINE * max(map(len, texts)))
    page = Image.new("RGB", (columns * cell[0] + GAP, -(-len(pixels) // columns) * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(page)
    for index, (picture, lines) in enumerate(zip(to_pictures(pixels), texts, strict=True)):
        left, top = (GAP + number * size for number, size in zip(divmod(index, columns)[::-1], cell, strict=True))
        page.paste(picture.resize(side, Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + side[1] + number * CAPTION_LINE), line, fill="black", font=font)
    return page


def wrapped(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """A text in lines that are `width` at most as `measure` has it; one that needs too many ends in dots."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    kept = [_cut(line, width, measure) for line in lines[:CAPTION_LINES]]
    return kept if len(lines) <= CAPTION_LINES else [*kept[:-1], _cut(f"{kept[-1]} {DOTS}", width, measure)]


def _cut(line: str, width: float, measure: Callable[[str], float]) -> str:
    """The line, or as much of it as fits with dots behind."""
    if measure(line) <= width:
        return line
    fitting = (line[:end].rstrip() + DOTS for end in range(len(line) - 1, 0, -1))
    return next((text for text in fitting if measure(text) <= width), "")


class SampleOutput(StrEnum):
    """What the name of an output asks for."""

    SHEET = "sheet"  # One picture of all.
    ARRAYS = "arrays"  # ADM's: arr_0 uint8 NHWC, with labels and seeds.
    FOLDER = "folder"  # A PNG per seed.


def sample_output(out: Path) -> SampleOutput:
    """What is written at `out`; InputError for the endings of files that are not written."""
    ending = out.suffix.lower()
    if ending in NOT_WRITTEN:
        raise InputError(
            f"--out {out}: files that end in {ending} are not written; allowed are a name ending in .png or .npz, or a "
            "folder"
        )
    return {".png": SampleOutput.SHEET, ".npz": SampleOutput.ARRAYS}.get(ending, SampleOutput.FOLDER)


def array_bytes(pixels: Pixels, labels: Sequence[int], seeds: Sequence[int], *, command: str) -> bytes:
    """ADM's array file with labels and seeds, marked by the command that writes it."""
    arrays: dict[str, Any] = {"arr_0": pixels.numpy(), "labels": np.array(labels), "seeds": np.array(seeds)}
    arrays[PROVENANCE] = npz_mark(command, {})
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _picture(pixels: UInt8[Tensor, "height width channel"]) -> Image.Image:
    array = pixels.numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
