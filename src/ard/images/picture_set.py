"""Pictures with classes, wherever they lie on the disk: what every source gives, and how they become images."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ard.core.config import fingerprint_of
from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.images.centre_crop import centre_crop
from ard.images.picture_file import Header, read_header, read_picture

SquarePixels: TypeAlias = UInt8[Tensor, "batch size size channel"]
MODES = {1: "L", 3: "RGB"}  # By the number of channels.
SKETCH = 8  # Names in a sketch.
KINDS_SHOWN = 8
CLASSES_SHOWN = 10
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Encoded pictures in a fixed order; each is read when it is asked for."""

    path: Path
    kind: str
    """What lies there: folder, tars or data set."""
    names: Sequence[str]
    """By which the pictures are known, wherever the whole of them lies."""
    labels: Labels
    """Empty where the pictures have no classes."""
    class_names: tuple[str, ...]
    """By label; empty where classes are numbers only."""
    open: Callable[[int], BufferedIOBase]
    """A picture's bytes, which are read as far as they are needed."""
    name_of: Callable[[int], str]
    """What messages call a picture."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """What else lies there, by its kind, and how much of it."""

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self.names)

    @property
    def identity(self) -> str:
        """A fingerprint of the names and classes; a picture that is repaired leaves it as it is."""
        return fingerprint_of([list(self.names), self.labels.tolist(), list(self.class_names)])

    @property
    def num_classes(self) -> int:
        """How many classes there are; as many as the largest label needs where they have no names."""
        return len(self.class_names) or (int(self.labels.max()) + 1 if len(self.labels) else 0)

    @property
    def summary(self) -> str:
        """How many pictures there are, which label each class has, and what else is there and not used."""
        line = f"{self.path}: {self.count} pictures"
        if self.num_classes:
            names = [f"{label} = {name}" for label, name in enumerate(self.class_names)]
            more = ["…"] if len(names) > CLASSES_SHOWN else []
            line += f" of {self.num_classes} classes"
            line += f" ({', '.join(names[:CLASSES_SHOWN] + more)})" if names else ""
        return f"{line}; not used: {in_words(self.unused)}" if self.unused else line

    def sketch(self) -> tuple[str, ...]:
        """The smallest hashes of the names: sets that differ in a few pictures share most of theirs (MinHash)."""
        return tuple(sorted(hashlib.sha256(name.encode()).hexdigest()[:10] for name in self.names)[:SKETCH])

    def require_classes(self, num_classes: int) -> Labels:
        """The labels; InputError when they are not those of a teacher with `num_classes`."""
        require_classes(self.path, self.num_classes, num_classes, named=bool(self.class_names))
        return self.labels

    def picture(self, index: int, mode: str) -> Image.Image:
        """One picture as greyscale (L) or RGB; InputError that names it when it cannot be decoded."""
        with self.open(index) as file:
            return read_picture(file, self.name_of(index), mode=mode)

    def header(self, index: int) -> Header:
        """What one picture says of itself, without decoding it."""
        with self.open(index) as file:
            return read_header(file, self.name_of(index))

    def pixels(self, indices: Sequence[int], *, size: int, channels: int) -> SquarePixels:
        """Some pictures, cut to squares of `size`."""

        def square(index: int) -> Tensor:
            pixels = np.array(centre_crop(self.picture(index, MODES[channels]), size))
            return torch.from_numpy(pixels).view(size, size, channels)

        return torch.stack(list(in_threads(square, indices)))

    def images(self, indices: Sequence[int], *, size: int, channels: int) -> Latents:
        """Some pictures as square images in [-1, 1]."""
        return self.pixels(indices, size=size, channels=channels).permute(0, 3, 1, 2).float() / 127.5 - 1


def in_threads(function: Callable[[int], Result], indices: Iterable[int]) -> Iterator[Result]:
    """The function's results in order. Pillow decodes without Python's lock, so threads help."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, indices)


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


def in_words(found: Mapping[str, int]) -> str:
    """Kinds with their numbers, the most frequent first: 3 .txt files, 1 broken link."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in ordered[:KINDS_SHOWN])
    return f"{shown} and {len(ordered) - KINDS_SHOWN} more kinds" if len(ordered) > KINDS_SHOWN else shown
