"""Pictures with classes, wherever they lie on the disk: what every source gives, and how they become images."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ard.config import fingerprint_of
from ard.errors import InputError
from ard.types import Labels, Latents

SUFFIXES = {".png", ".jpg", ".jpeg"}
SquarePixels: TypeAlias = UInt8[Tensor, "batch size size channel"]
MODES = {1: "L", 3: "RGB"}  # By the number of channels.


class Header(NamedTuple):
    """What a picture says of itself."""

    width: int
    height: int
    mode: str
    jpeg: bool


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Encoded pictures in a fixed order; each is read when it is asked for."""

    path: Path
    kind: str
    """What lies there: folder, tars or data set."""
    count: int
    labels: Labels
    """Empty where the pictures have no classes."""
    class_names: tuple[str, ...]
    """By label; empty where classes are numbers only."""
    identity: str
    """A fingerprint of the files' names and sizes."""
    read: Callable[[int], bytes]
    name_of: Callable[[int], str]

    @property
    def num_classes(self) -> int:
        """How many classes there are; as many as the largest label needs where they have no names."""
        return len(self.class_names) or (int(self.labels.max()) + 1 if len(self.labels) else 0)

    def require_classes(self, num_classes: int) -> Labels:
        """The labels; InputError when they are not those of a teacher with `num_classes`."""
        require_classes(self.path, self.num_classes, num_classes, named=bool(self.class_names))
        return self.labels

    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture as greyscale (L) or RGB; InputError that names it when it cannot be decoded."""
        with self._opened(index) as picture:
            return picture.convert(mode)

    def header(self, index: int) -> Header:
        """What one picture says of itself, without decoding it."""
        with self._opened(index) as picture:
            return Header(picture.width, picture.height, picture.mode, picture.format == "JPEG")

    def pixels(self, indices: Sequence[int], *, size: int, channels: int) -> SquarePixels:
        """Some pictures, cut to squares of `size`. Pillow decodes without Python's lock, so threads help."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pictures = pool.map(lambda index: centre_crop(self.picture(index, MODES[channels]), size), indices)
            return torch.stack([torch.from_numpy(np.array(one)).view(size, size, channels) for one in pictures])

    def images(self, indices: Sequence[int], *, size: int, channels: int) -> Latents:
        """Some pictures as square images in [-1, 1]."""
        return self.pixels(indices, size=size, channels=channels).permute(0, 3, 1, 2).float() / 127.5 - 1

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        """A picture that is decoded when it is used; InputError that names it when it cannot be."""
        try:
            with Image.open(io.BytesIO(self.read(index))) as picture:
                yield picture
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).split(" <_io")[0]
            raise InputError(f"{self.name_of(index)} cannot be decoded ({reason}); repair it or take it away") from None


def require_classes(path: Path, found: int, wanted: int, *, named: bool) -> None:
    """InputError unless pictures of `found` classes are those of a teacher with `wanted`.

    Classes without names are known by their largest number only, so that there may be fewer.
    """
    if not found:
        raise InputError(f"the pictures in {path} have no classes, and the teacher has {wanted}")
    if found > wanted or (named and found != wanted):
        raise InputError(
            f"the pictures in {path} have {found} classes, the teacher {wanted}; give those that it was trained on"
        )


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """A square of `size` pixels from the centre, as ADM and DiT make it (Dhariwal and Nichol, 2021).

    The picture is halved by averaging while its short side is at least twice `size`, then made to fit by bicubic
    interpolation; one that fits already stays as it is.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def identity_of(files: Sequence[Path], root: Path) -> str:
    """A fingerprint of files by their names below `root` and their sizes."""
    return fingerprint_of([[str(file.relative_to(root)), file.stat().st_size] for file in files])
