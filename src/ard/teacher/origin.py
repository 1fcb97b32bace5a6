"""Where the teacher of a store or a student is now: in its place, or beside what was moved."""

from collections.abc import Iterator
from pathlib import Path

from ard.core.errors import InputError
from ard.teacher.teacher import TeacherRef, load_teacher_card, stored_hash


def find_teacher(reference: TeacherRef, artefact: Path) -> Path:
    """The folder of the teacher that the artefact in the folder `artefact` comes from.

    What is in its recorded place is taken; whoever loads it tells when it is damaged or another one. InputError that
    asks for --teacher when nothing is there, and no teacher with its hash in the folders beside the artefact.
    """
    recorded = reference.folder(artefact)
    if (recorded / "config.json").exists():
        return recorded
    for folder in _beside(artefact):
        if _is_teacher(folder) and stored_hash(folder) == reference.hash:
            return folder
    raise InputError(
        f"{artefact} comes from the teacher {reference.hash}, which is neither in {recorded} nor beside {artefact}; "
        "name its folder with --teacher"
    )


def _beside(artefact: Path) -> Iterator[Path]:
    """The folders beside an artefact, and beside what a link to it stands for."""
    for parent in dict.fromkeys((artefact.absolute().parent, artefact.resolve().parent)):
        yield from sorted(path for path in parent.iterdir() if path.is_dir())


def _is_teacher(folder: Path) -> bool:
    try:
        load_teacher_card(folder)
    except InputError:
        return False
    return True
