"""What pictures are asked to show: classes by number or name, or prompts, encoded before or given now."""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ard.cli.options import parse_range
from ard.core.errors import InputError
from ard.core.types import Labels
from ard.export.text import students_encoder
from ard.networks.condition import Condition
from ard.networks.transformer import TextConfig, TransformerConfig
from ard.student.decoding import teacher_of
from ard.student.folder import StudentCard, find_text
from ard.teacher.teacher import TeacherCard
from ard.text.encoded import EncodedText, encode_now, load_text_manifest, require_text
from ard.text.encoder import TextEncoderCard, find_text_encoder, text_encoder
from ard.text.prompts import MAX_CHARACTERS

OPTION = "--text-encoder"
Show: TypeAlias = Callable[[Labels], Condition]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The labels that there are, and what they stand for."""

    num: int
    names: tuple[str, ...] = ()
    """By label: prompts, or the names of classes where these have some."""
    prompts: bool = False
    load: Callable[[torch.device], Show]
    """Gives what makes conditions of labels; encodes the prompts that are given now."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What decides a condition beside its label and the model."""

    def labels(self, text: str) -> list[int]:
        """The labels of --labels: all, numbers, ranges, and names of classes; InputError for one that is none."""
        if text == "all":
            return list(range(self.num))
        labels = [label for part in text.split(",") for label in self._labels_of(part.strip(), text)]
        if unknown := [label for label in labels if label >= self.num]:
            raise InputError(f"--labels {text}: label {unknown[0]} is out of range; allowed: 0 to {self.num - 1}")
        return labels

    def told(self, labels: Sequence[int]) -> dict[str, str]:
        """What labels stand for, where they have names."""
        return {str(label): self.names[label] for label in sorted(set(labels)) if self.names and self.names[label]}

    def _labels_of(self, part: str, text: str) -> list[int]:
        """What stands between two commas: what looks like numbers is numbers, also where classes are called so."""
        if self.prompts or not any(self.names) or re.fullmatch(r"[0-9]+(-[0-9]+)?", part):
            return parse_range(part, "labels")
        return [_label_of(part, labels_by_name(self.names), text)]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """What the options say about prompts; InputError for some that do not go together."""

    text: Path | None
    prompts: Sequence[str]
    encoder: Path | None
    """The folder that --text-encoder names."""
    max_tokens: int | None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.prompts and self.text:
            raise InputError(f"--prompt and --text {self.text} are two sources of prompts; give one of them")
        if self.prompts and not self.encoder:
            raise InputError(f"--prompt needs {OPTION}: the folder of the text encoder, or of the teacher's pipeline")
        if not self.prompts and (self.encoder or self.max_tokens):
            raise InputError(f"{OPTION} and --max-tokens are for --prompt; leave them out")
        if wrong := next((prompt for prompt in self.prompts if len(prompt) > MAX_CHARACTERS), None):
            raise InputError(f"--prompt has {len(wrong)} characters; at most {MAX_CHARACTERS} are taken as a prompt")


def asked_of_student(card: StudentCard, folder: Path, given: Prompted) -> Asked:
    """What the student in `folder` can be asked: its classes, stored prompts, or given ones.

    InputError for prompts or an encoder that do not fit it.
    """
    if given.encoder is None:
        stored = find_text(given.text, card, folder)
        return _stored(stored) if stored else _classes(card.network, _names_for_student(card, folder))
    _require_reader(card.network, folder)
    learned, length = card.text.folder(folder) if card.text else None, given.max_tokens
    if length is None and learned and (learned / "text.json").is_file():
        length = load_text_manifest(learned)[0].max_tokens
    return _given(given.prompts, students_encoder(given.encoder, card, folder, length))


def asked_of_teacher(card: TeacherCard, folder: Path, given: Prompted) -> Asked:
    """The same of a teacher, which has no stored prompts of its own."""
    if given.encoder is None:
        stored = EncodedText(given.text) if given.text else None
        require_text(stored, card.network, owner=folder)
        return _stored(stored) if stored else _classes(card.network, card.imported.class_names if card.imported else ())
    shape = _require_reader(card.network, folder)
    found = find_text_encoder(given.encoder, max_tokens=given.max_tokens, precision="float32", option=OPTION)
    if found.width != shape.width:
        raise InputError(f"{found.folder} makes text of width {found.width}, and {folder} reads {shape.width}")
    return _given(given.prompts, found)


def _require_reader(network: TransformerConfig, owner: Path) -> TextConfig:
    """The text that a network reads; InputError when it reads none."""
    if network.text is None:
        raise InputError(f"--prompt has no meaning: {owner} has {network.num_classes} classes; choose with --labels")
    return network.text


def _classes(network: TransformerConfig, names: tuple[str, ...]) -> Asked:
    fitting = names if len(names) == network.num_classes else ()
    return Asked(num=network.num_classes, names=fitting, load=lambda _: lambda labels: labels)


def _stored(text: EncodedText) -> Asked:
    identity = {"text": text.manifest.identity}
    return Asked(
        num=len(text), names=text.manifest.prompts, prompts=True, load=lambda _: text.condition, identity=identity
    )


def _given(prompts: Sequence[str], encoder: TextEncoderCard) -> Asked:
    def load(device: torch.device) -> Show:
        with text_encoder(encoder, device) as encode:
            encoded = encode_now(prompts, encode, max_tokens=encoder.max_tokens)
        return lambda labels: encoded[labels]

    identity = {"prompts": list(prompts), "text_encoder": encoder.identity()}
    return Asked(num=len(prompts), names=tuple(prompts), prompts=True, load=load, identity=identity)


def _names_for_student(card: StudentCard, folder: Path) -> tuple[str, ...]:
    """The names of its teacher's classes; empty where that has none, or is elsewhere by now."""
    with suppress(InputError):
        teacher = teacher_of(card, folder)
        return teacher.imported.class_names if teacher and teacher.imported else ()
    return ()


def labels_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """The labels that have a name; a class may have several names, with commas between."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for label, all_of_it in enumerate(names):
        for name in dict.fromkeys(part.strip() for part in all_of_it.split(",")):
            if name:
                found[name].append(label)
    return dict(found)


def _label_of(name: str, names: Mapping[str, list[int]], text: str) -> int:
    labels = names.get(name, [])
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise InputError(f"--labels {text}: {name!r} is the name of {' and '.join(map(str, labels))}; give the number")
    near = difflib.get_close_matches(name, names, n=3) or list(names)[:3]
    raise InputError(f"--labels {text}: no class is called {name!r}; there are, for instance, {', '.join(near)}")
