"""Data sets by name. A data set is one function that returns its images and labels; adding one is one line here."""

from collections.abc import Callable
from typing import NamedTuple

from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.images.digits import load_digits_images


class ImageData(NamedTuple):
    """Images in [-1, 1], their labels, and how many classes there are."""

    images: Latents
    labels: Labels
    num_classes: int


DATASETS: dict[str, Callable[[], tuple[Latents, Labels, int]]] = {"digits": load_digits_images}


def load_data(name: str) -> ImageData:
    """The data set called `name`; InputError when there is none."""
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; allowed: {', '.join(DATASETS)}")
    return ImageData(*DATASETS[name]())
