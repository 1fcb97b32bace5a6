"""What an export takes along of a student that reads text: its encoder, and the prompts for the samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ard.core.errors import InputError
from ard.student.folder import StudentCard, find_text
from ard.text.encoded import EncodedText
from ard.text.encoder import EncoderPrecision, TextEncoderCard, find_text_encoder

OPTION = "--text-encoder"


@dataclass(frozen=True, kw_only=True)
class ExportedText:
    """The text of an export."""

    prompts: Path | None
    """The encoded prompts that the student learned from; None where they are not in their place."""
    encoder: TextEncoderCard | None
    """None: none comes along."""
    source: str
    """The name of the encoder's folder; empty without one."""

    def encoded(self) -> EncodedText | None:
        """The prompts."""
        return EncodedText(self.prompts) if self.prompts else None


def plan_text(card: StudentCard, student: Path, *, encoder: Path | None, max_tokens: int | None) -> ExportedText | None:
    """The text of this student's export, None for one that knows classes; InputError for what does not fit."""
    if max_tokens and not encoder:
        raise InputError(f"--max-tokens {max_tokens} has no meaning without {OPTION}; leave it out")
    if card.network.text is None:
        if encoder:
            classes = card.network.num_classes
            raise InputError(f"{OPTION} {encoder} has no meaning: {student} has {classes} classes; leave it out")
        return None
    folder = card.text.folder(student) if card.text else None
    prompts = find_text(None, card, student) if folder and (folder / "text.json").is_file() else None
    length = max_tokens or (prompts.manifest.max_tokens if prompts else None)
    return ExportedText(
        prompts=prompts.folder if prompts else None,
        encoder=students_encoder(encoder, card, student, length) if encoder else None,
        source=encoder.resolve().name if encoder else "",
    )


def students_encoder(folder: Path, card: StudentCard, student: Path, max_tokens: int | None) -> TextEncoderCard:
    """The encoder in `folder`, run as it was for the student's prompts; InputError when it is another one."""
    wanted = card.text.encoder if card.text else ""
    for precision in get_args(EncoderPrecision):
        found = find_text_encoder(folder, max_tokens=max_tokens, precision=precision, option=OPTION)
        if found.identity() == wanted:
            return found
    raise InputError(
        f"{folder}, read up to {found.max_tokens} tokens, is not the text encoder that {student} learned from; give "
        f"that one to {OPTION}, and --max-tokens if a prompt was cut to others"
    )
