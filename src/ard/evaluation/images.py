"""Pictures as uint8 RGB batches in a fixed order, and those that are drawn from a student."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.core.seeds import in_words
from ard.images.pictures import Pixels, to_pixels
from ard.networks.autoencoder import AutoencoderCard
from ard.student.decoding import find_autoencoder, load_decoder, space_of_student
from ard.student.folder import StudentCard, find_text, load_card, load_student
from ard.student.sampling import sample
from ard.teacher.teacher import noise_for_seeds
from ard.text.encoded import condition_of, num_conditions

RgbPixels = UInt8[Tensor, "batch height width 3"]
Batches = Callable[[Sequence[int], int], Iterator[RgbPixels]]


class LabelSampling(StrEnum):
    """Which classes a student is asked for; the label of a seed is the same in every run."""

    RANDOM = "random"  # Drawn for each seed, as ADM and DiT do.
    BALANCED = "balanced"  # The seed modulo the number of classes, as `ard sample`: 50 per class of ImageNet's 50,000.


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures of one size in a fixed order. Greyscale ones are repeated to three channels."""

    count: int
    height: int
    width: int
    batches: Batches
    """The pictures at ascending indices, so many at a time: uint8, channels last, always RGB."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Where they come from, for the result."""
    summary: str = ""
    """What people are told of pictures that were found, before the work."""

    def first(self, num: int | None) -> "Images":
        """The first `num` pictures; all of them for None. InputError when there are fewer."""
        if num is None:
            return self
        if not 1 <= num <= self.count:
            raise InputError(f"--num {num}: {self.facts.get('path')} has {self.count} images; allowed: 1 to that")
        return replace(self, count=num)

    def plain(self) -> dict[str, Any]:
        """Number, size and origin as JSON holds them."""
        return {"num": self.count, "height": self.height, "width": self.width, **self.facts}


def open_student(
    folder: Path,
    *,
    seeds: Sequence[int],
    labels: LabelSampling,
    device: torch.device,
    vae: Path | None = None,
    text: Path | None = None,
) -> Images:
    """One image per seed, drawn when it is asked for: it depends on its seed and its label, not on the batch.

    `vae` is the folder of the autoencoder of a latent student, `text` that of the prompts of one that reads text, where
    they are not those that it learned from; InputError when one is missing or does not fit.
    """
    card = load_card(folder)
    prompts = find_text(text, card, folder)
    num_labels = num_conditions(prompts, card.network)
    autoencoder, size = find_autoencoder(vae, space_of_student(card, folder)), card.network.latent_size
    side = size * autoencoder.downsampling if autoencoder else size

    def batches(rows: Sequence[int], batch_size: int) -> Iterator[RgbPixels]:
        student, _ = load_student(folder, device)
        decode = load_decoder(autoencoder, device)
        for part in parts_of(rows, batch_size):
            chosen = [seeds[row] for row in part]
            noise = noise_for_seeds(torch.tensor(chosen), (card.network.channels, size, size)).to(device)
            condition = condition_of(prompts, torch.tensor([label_of(seed, labels, num_labels) for seed in chosen]))
            yield as_rgb(to_pixels(decode(sample(student, noise, condition=condition.to(device))[:, -1])).cpu())

    facts = _student_facts(folder, card, autoencoder, seeds, labels)
    if prompts:
        facts |= {"text": str(prompts.folder), "text_hash": prompts.manifest.identity}
    return Images(count=len(seeds), height=side, width=side, batches=batches, facts=facts)


def label_of(seed: int, sampling: LabelSampling, num_classes: int) -> int:
    """The class that a seed stands for. A random one is a hash of the seed, so that it says nothing of the noise."""
    match sampling:
        case LabelSampling.BALANCED:
            return seed % num_classes
        case LabelSampling.RANDOM:
            return int.from_bytes(hashlib.sha256(f"label/{seed}".encode()).digest()[:8], "big") % num_classes


def parts_of(rows: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Indices in pieces of at most `batch_size`."""
    yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def as_rgb(pixels: Pixels) -> RgbPixels:
    """One channel repeated to three, as every feature network needs them; three stay."""
    return pixels.expand(-1, -1, -1, 3) if pixels.shape[-1] == 1 else pixels


def _student_facts(
    folder: Path,
    card: StudentCard,
    autoencoder: AutoencoderCard | None,
    seeds: Sequence[int],
    labels: LabelSampling,
) -> dict[str, Any]:
    """What a number about a student's samples needs beside it."""
    channels = autoencoder.image_channels if autoencoder else card.network.channels
    return {
        "path": str(folder),
        "kind": "student",
        "greyscale": len(seeds) if channels == 1 else 0,
        "jpeg": 0,
        "seeds": in_words(seeds),
        "labels": labels.value,
        "guidance": to_plain(card.ode.guidance),
        "student": to_plain(card.student),
        "teacher": card.teacher.hash,
        "autoencoder": _autoencoder_facts(autoencoder) if autoencoder else None,
    }


def _autoencoder_facts(card: AutoencoderCard) -> dict[str, Any]:
    """What decides the pictures beside the latents."""
    return {
        "weights": str(card.folder),
        "sha256": card.sha256,
        "scaling_factor": card.scale.scaling_factor,
        "shift_factor": card.scale.shift_factor,
        "dtype": "float32, no TF32",
    }
