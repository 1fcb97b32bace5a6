"""Latents or images in [-1, 1] to 8-bit pictures, sheets and sample files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ard.files import write_atomically
from ard.types import Latents

Pixels = UInt8[Tensor, "batch height width channel"]


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


def save_samples(out: Path, images: Latents, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Write images as `save_pixels` does."""
    save_pixels(out, to_pixels(images), labels, seeds)


def save_pixels(out: Path, pixels: Pixels, labels: Sequence[int], seeds: Sequence[int]) -> None:
    """Write a sheet (.png), an ADM-style array file (.npz) or a folder with one PNG per seed (no suffix)."""
    match out.suffix:
        case ".png":
            columns = min(len(seeds), max(8, round(len(seeds) ** 0.5)))
            scale = max(1, 64 // pixels.shape[1])
            write_atomically(out, png_bytes(sheet(pixels, columns=columns, scale=scale, gap=2)))
        case ".npz":
            arrays: dict[str, Any] = {"arr_0": pixels.numpy(), "labels": np.array(labels), "seeds": np.array(seeds)}
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            write_atomically(out, buffer.getvalue())
        case _:
            for seed, label, image in zip(seeds, labels, pixels, strict=True):
                write_atomically(out / f"seed-{seed:07d}-label-{label:04d}.png", png_bytes(_picture(image)))


def _picture(pixels: UInt8[Tensor, "height width channel"]) -> Image.Image:
    array = pixels.numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
