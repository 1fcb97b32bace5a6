"""One call of ard sample: what is drawn, and how it becomes a sheet, arrays, a folder or a grid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ard.cli.asked import Asked
from ard.cli.sample_grid import GridRow
from ard.core.outputs import Outputs
from ard.images.pictures import Pixels, array_bytes, labelled_sheet, samples_sheet
from ard.networks.transformer import TransformerConfig
from ard.student.decoding import LatentSpace
from ard.student.sample_folder import SampleFolder

COMMAND = "sample"
SHOWN = 20  # So many names of labels are printed at most.
Draw: TypeAlias = Callable[[Sequence[int], Sequence[int]], Iterator[Iterator[Pixels]]]
"""The pictures of seeds with their labels: for every row its batches."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """What draws, and what it can be asked."""

    rows: list[GridRow]
    network: TransformerConfig
    """What makes the states; all rows make the same."""
    spaces: list[LatentSpace]
    """Of every student, or of the teacher."""
    asked: Asked
    evaluations: int
    """Of the network, per image of the first row."""
    plan: dict[str, Any]
    """What --dry-run tells of it."""
    identity: dict[str, Any]
    """What decides an image beside its seed, its label and the autoencoder."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which pictures are to be where. Its methods check the output, draw what is missing, write it and say so."""

    out: Path
    models: Models
    seeds: Sequence[int]
    labels: Sequence[int]
    made_by: dict[str, Any]
    image_bytes: int
    overwrite: bool

    def write_folder(self, draw: Draw) -> None:
        """A PNG per seed, each written when it is drawn; those that are there stay."""
        folder = SampleFolder(
            folder=self.out,
            made_by=self.made_by,
            seeds=self.seeds,
            labels=self.labels,
            asked=self.models.asked.told(self.labels),
        )
        places = folder.missing(overwrite=self.overwrite, size=self._size // 2)  # PNG halves pictures, or so.
        if not places:
            return print(f"samples {self.out} are there already: {len(self.seeds)} images")
        self._tell_names()
        folder.begin()
        for row in draw([self.seeds[place] for place in places], [self.labels[place] for place in places]):
            first = 0
            for pixels in row:
                folder.save(places[first : first + len(pixels)], pixels)
                first += len(pixels)
        self._tell(f"{len(self.seeds)} images", f", {len(self.seeds) - len(places)} of them were there")

    def write_arrays(self, draw: Draw) -> None:
        """ADM's array file."""
        outputs = self._checked()
        (pixels,) = self._drawn(draw)
        outputs.write(self.out, array_bytes(pixels, self.labels, self.seeds, command=outputs.command))
        self._tell(f"{len(self.seeds)} images")

    def write_sheet(self, draw: Draw) -> None:
        """One picture of all, prompts below them where there are prompts."""
        outputs, asked = self._checked(), self.models.asked
        (pixels,) = self._drawn(draw)
        captions = [asked.names[label] for label in self.labels] if asked.prompts else []
        outputs.png(self.out, samples_sheet(pixels, captions))
        self._tell(f"{len(self.seeds)} images")

    def write_grid(self, draw: Draw) -> None:
        """One picture with a row per model."""
        outputs, rows = self._checked(), self.models.rows
        pixels = self._drawn(draw)
        scale = max(1, 64 // pixels[0].shape[1])
        outputs.png(self.out, labelled_sheet([row.label for row in rows], pixels, scale=scale))
        print(f"samples {self.out}: {len(self.seeds)} images from each of {len(rows)} models, the same noises for all")

    def _checked(self) -> Outputs:
        outputs = Outputs(command=COMMAND, overwrite=self.overwrite)
        outputs.check(self.out, size=self._size)
        self._tell_names()
        return outputs

    def _drawn(self, draw: Draw) -> list[Pixels]:
        return [torch.cat(list(row)) for row in draw(self.seeds, self.labels)]

    @property
    def _size(self) -> int:
        """Bytes, not compressed."""
        return len(self.models.rows) * len(self.seeds) * self.image_bytes

    def _tell_names(self) -> None:
        """What the labels stand for, where classes have names."""
        told = list(self.models.asked.told(self.labels).items())
        if told and not self.models.asked.prompts:
            more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
            print(f"labels: {', '.join(f'{label} {name}' for label, name in told[:SHOWN])}{more}")

    def _tell(self, count: str, there: str = "") -> None:
        told = "" if there.startswith(", 0 ") else there
        print(f"samples {self.out}: {count}, {self.models.evaluations} network evaluations each{told}")
