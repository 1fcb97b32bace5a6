"""What an evaluation reports: the numbers, and all that a second evaluation must share to get them again."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch

from ard import __version__
from ard.evaluation.adm import Reference
from ard.evaluation.features.network import Feature, FeatureNetwork
from ard.evaluation.images import Images

NUM_SAMPLES = 50_000  # Of FID-50k, which papers report.

NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "fd_dinov2": "FD-DINOv2",
    "cmmd": "CMMD",
}


def evaluator() -> dict[str, str]:
    """Who computed the numbers."""
    return {"name": "ard", "version": __version__, "torch": torch.__version__}


@dataclass(frozen=True, kw_only=True)
class Result:
    """An evaluation as `--json` writes it."""

    metrics: dict[str, float]
    samples: dict[str, Any]
    """Number, size, origin; of a student also its seeds, how its labels are drawn, and its guidance."""
    reference: dict[str, Any] | None
    networks: dict[str, dict[str, Any]]
    """Weights, their SHA-256, resize and precision."""
    settings: dict[str, Any]
    notes: tuple[str, ...]
    """Why the numbers may not compare with others."""
    evaluator: dict[str, str] = field(default_factory=evaluator)


def format_result(result: Result) -> str:
    """A line per number, then the notes."""
    shown = [f"{NAMES[name]:10} {_cell(name, result.metrics)}" for name in NAMES if name in result.metrics]
    return "\n".join([*shown, *(f"note: {note}" for note in result.notes)])


def notes_on(
    samples: Images,
    reference: Reference | None,
    networks: Sequence[FeatureNetwork],
    *,
    num_kept: int,
    computed: AbstractSet[Feature],
) -> tuple[str, ...]:
    """What keeps the numbers from being compared with published ones.

    `computed` are the features whose statistics the reference does not store.
    """
    notes = [note for network in networks for note in network.notes]
    if samples.count < NUM_SAMPLES:
        notes.append(f"{samples.count} samples, not {NUM_SAMPLES}: compare with the same number of samples only")
    pictures = reference.images if reference else None
    for images in (samples, pictures):
        notes += _notes_on_pictures(images) if images else []
    if pictures and pictures.count > num_kept:
        kept = f"{num_kept} of the reference's {pictures.count} pictures"
        notes.append(f"metrics that need more than statistics see {kept}, spread evenly over the file order")
    if pictures and reference and reference.stored and computed:
        those = ", ".join(sorted(computed))
        notes.append(f"the reference stores no statistics of {those}; they are of its {pictures.count} pictures")
    return tuple(notes)


def _notes_on_pictures(images: Images) -> list[str]:
    where, notes = images.facts["path"], []
    if jpeg := images.facts["jpeg"]:
        notes.append(f"{jpeg} of the {images.count} pictures in {where} are JPEG, which shifts every distance")
    if grey := images.facts["greyscale"]:
        notes.append(f"{grey} of the {images.count} pictures in {where} are greyscale, repeated to 3 channels")
    return notes


def _cell(name: str, metrics: dict[str, float]) -> str:
    """Five digits, with the spread behind ± where there is one."""
    spread = metrics.get(f"{name}_std")
    return f"{metrics[name]:.5g}" + ("" if spread is None else f" ± {spread:.2g}")
