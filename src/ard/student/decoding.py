"""Which autoencoder makes pictures of a model's latents: the one that is given, or the one that its teacher came with.

Every command asks here, so that an autoencoder that does not fit is refused everywhere alike, before any work.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.core.files import followed
from ard.core.types import Latents
from ard.networks.autoencoder import (
    OPTION,
    PICTURE_CHANNELS,
    AutoencoderCard,
    DecodedImages,
    LatentScale,
    load_autoencoder,
    read_autoencoder,
    require_package,
)
from ard.student.folder import StudentCard
from ard.teacher.teacher import TeacherCard, load_teacher_card


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """What is known of the states that a teacher or a student ends with."""

    owner: Path
    """The folder of the teacher or student."""
    channels: int
    scale: LatentScale | None
    """None where they are pictures, or where nobody says."""
    vae: Path | None
    """Where the autoencoder is that the teacher came with."""

    @property
    def is_of_pictures(self) -> bool:
        """Whether the states are pictures: latents of three channels have a scale, or an autoencoder."""
        return self.channels in PICTURE_CHANNELS and self.scale is None and self.vae is None


def space_of_teacher(card: TeacherCard, folder: Path) -> LatentSpace:
    """The space of the teacher in `folder`."""
    imported = card.imported
    vae = followed(imported.vae, seen_from=folder) if imported and imported.vae else None
    scale = imported.scale if imported else None
    return LatentSpace(owner=folder, channels=card.network.channels, scale=scale, vae=vae)


def space_of_student(card: StudentCard, folder: Path) -> LatentSpace:
    """The space of the student in `folder`: what its card says, and what its teacher says where that is in its place.

    Something else in that place is no obstacle: a student can be drawn without its teacher.
    """
    known = None
    with suppress(InputError):
        teacher = teacher_of(card, folder)
        known = space_of_teacher(teacher, card.teacher.folder(folder)) if teacher else None
    scale, vae = (known.scale, known.vae) if known else (None, None)
    return LatentSpace(owner=folder, channels=card.network.channels, scale=card.latents or scale, vae=vae)


def teacher_of(card: StudentCard, student: Path) -> TeacherCard | None:
    """The card of the student's teacher, which may be elsewhere by now; InputError when another one is in its place."""
    folder = card.teacher.folder(student)
    if not (folder / "config.json").is_file():
        return None
    teacher = load_teacher_card(folder)
    if (teacher.network, teacher.diffusion) != (card.network, card.diffusion):
        raise InputError(f"the teacher in {folder} is not the student's; put the right one there, or none")
    return teacher


def find_autoencoder(given: Path | None, *spaces: LatentSpace) -> AutoencoderCard | None:
    """The card of the autoencoder in `given`, or of the one that the first of the spaces knows; None for pictures.

    InputError when latents have none, or one with other channels or another scale than the latents of any space.
    """
    first = spaces[0]
    if given is None and first.is_of_pictures:
        return None
    card = read_autoencoder(given or _known(first))
    for space in spaces:
        _require_channels(card, space)
        told = f"the autoencoder in {card.folder} scales its latents"
        require_scale(card.scale, space.scale, of=told, how=f"decode those of {space.owner}")
    require_package()
    return card


def require_scale(found: LatentScale | None, wanted: LatentScale | None, *, of: str, how: str) -> None:
    """InputError when both are known and differ; `of` says what has `found`, `how` what the right autoencoder does."""
    if found and wanted and not found.is_close_to(wanted):
        raise InputError(f"{of} by {found}, the teacher's by {wanted}; {how} with the autoencoder of the teacher")


def load_decoder(card: AutoencoderCard | None, device: torch.device) -> Callable[[Latents], DecodedImages]:
    """What makes images of last states: the autoencoder's decoder, or nothing where they are images."""
    return load_autoencoder(card.folder, device).decode if card else lambda images: images


def _known(space: LatentSpace) -> Path:
    """The autoencoder that the teacher came with; InputError where there is none, or none any more."""
    what = f"{space.owner} makes latents of {space.channels} channels, no pictures"
    if space.vae is None:
        raise InputError(f"{what}; name the folder of the autoencoder that decodes them with {OPTION}")
    if not space.vae.is_dir():
        raise InputError(f"{what}, and the autoencoder of its teacher is gone from {space.vae}; name it: {OPTION}")
    return space.vae


def _require_channels(card: AutoencoderCard, space: LatentSpace) -> None:
    if card.latent_channels != space.channels:
        raise InputError(
            f"the autoencoder in {card.folder} decodes latents of {card.latent_channels} channels, and {space.owner} "
            f"makes {space.channels}; give the autoencoder of its teacher with {OPTION}"
        )
