"""Encoded prompts on disk: made once by a text encoder, read by every command that needs them.

A folder holds text.json, which lists the prompts, and files with a tensor for each different one, under its hash: the
encoder's output in bfloat16, real tokens only. The empty prompt, which guidance needs, is always the first.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from ard.condition import Condition, Prompts, padded
from ard.config import differences, fingerprint_of, from_plain, to_plain
from ard.errors import InputError
from ard.files import read_json, remove_leftovers, write_atomically, write_json
from ard.models.text_encoder import Encode
from ard.models.transformer import TransformerConfig
from ard.models.weights import to_bytes
from ard.types import Labels

SCHEMA = 1
PER_FILE = 64  # Prompts of a file: 20 MB for T5-XXL and prompts of 40 tokens.
OPEN_FILES = 64
EMPTY = ""
REPAIR = "run the same ard text encode command again"


@dataclass(frozen=True, kw_only=True)
class TextManifest:
    """What a folder of encoded prompts says of itself."""

    encoder: str
    """A fingerprint of the encoder, its tokenizer and how they are run."""
    source: str
    """The name of the encoder's folder."""
    width: int
    max_tokens: int
    prompts: tuple[str, ...]

    @property
    def identity(self) -> str:
        """A fingerprint of everything that decides the content."""
        return fingerprint_of([self.encoder, self.prompts])

    def different(self) -> list[str]:
        """The different texts that are encoded, the empty one first."""
        return _different(self.prompts)

    @property
    def num_files(self) -> int:
        """How many files there are."""
        return -(-len(self.different()) // PER_FILE)


@dataclass(frozen=True, kw_only=True)
class TextRef:
    """Which encoded prompts an artefact comes from."""

    hash: str
    encoder: str
    num: int
    """How many prompts there are."""
    path: str
    """Where their folder is, seen from the artefact's."""

    def folder(self, artefact: Path) -> Path:
        """The prompts' folder, for an artefact in the folder `artefact`."""
        return Path(os.path.normpath(artefact / self.path))


def cleaned(prompt: str) -> str:
    """What is encoded of a prompt: PixArt's pipelines take it in lower case, without spaces around it."""
    return prompt.lower().strip()


def text_hash(text: str) -> str:
    """The name of a text's tensor."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_prompts(folder: Path, manifest: TextManifest, encode: Encode, *, progress: Callable[[int], object]) -> None:
    """Make or complete the folder: files that are there stay, the others are made."""
    _prepare(folder, manifest)
    texts = manifest.different()
    for index in range(manifest.num_files):
        part = texts[index * PER_FILE : (index + 1) * PER_FILE]
        if not _is_whole(folder / _file_name(index), part, manifest.encoder):
            tensors = dict(zip(map(text_hash, part), encode(part), strict=True))
            write_atomically(folder / _file_name(index), to_bytes(tensors, {"encoder": manifest.encoder}))
        progress(len(part))


def encode_now(prompts: Sequence[str], encode: Encode, *, max_tokens: int) -> Prompts:
    """The prompts, encoded without a folder: the bits are those of one that lists the same prompts."""
    texts = _different(prompts)
    found = dict(zip(texts, encode(texts), strict=True))
    return padded([found[cleaned(prompt)] for prompt in prompts], null=found[EMPTY], length=max_tokens)


def is_encoded(folder: Path, manifest: TextManifest) -> bool:
    """Whether the folder holds all of it; InputError when it holds other prompts."""
    if not (folder / "text.json").exists():
        return False
    _prepare(folder, manifest)
    texts = manifest.different()
    parts = (texts[index * PER_FILE : (index + 1) * PER_FILE] for index in range(manifest.num_files))
    return all(_is_whole(folder / _file_name(index), part, manifest.encoder) for index, part in enumerate(parts))


class EncodedText:
    """The prompts of a folder, each by its number in the list."""

    def __init__(self, folder: Path) -> None:
        """InputError when the folder holds none, or not all."""
        self.folder, self.manifest = folder, load_text_manifest(folder)
        files = ((index, _opened(folder / _file_name(index))) for index in range(self.manifest.num_files))
        self._places = {name: index for index, file in files for name in file.keys()}  # noqa: SIM118 it is no dictionary
        self._names = [text_hash(cleaned(prompt)) for prompt in self.manifest.prompts]
        if not self._places.keys() >= {*self._names, text_hash(EMPTY)}:
            raise InputError(f"{folder} is incomplete; {REPAIR}")
        self._open = functools.lru_cache(OPEN_FILES)(_opened)
        self._null = self._read(text_hash(EMPTY))

    def __len__(self) -> int:
        return len(self._names)

    def condition(self, numbers: Labels) -> Prompts:
        """The prompts with these numbers, on the CPU, padded to as many tokens as are read at most.

        So what an image is computed with does not depend on the other prompts, of its batch or of the folder.
        """
        texts = [self._read(self._names[number]) for number in numbers.tolist()]
        return padded(texts, null=self._null, length=self.manifest.max_tokens)

    def reference(self, *, seen_from: Path) -> TextRef:
        """The reference that an artefact in `seen_from` keeps."""
        path = os.path.relpath(self.folder.resolve(), seen_from.resolve())
        return TextRef(hash=self.manifest.identity, encoder=self.manifest.encoder, num=len(self), path=path)

    def _read(self, name: str) -> Tensor:
        return self._open(self.folder / _file_name(self._places[name])).get_tensor(name)


def seen_from(reference: TextRef, artefact: Path, other: Path) -> TextRef:
    """The reference of `artefact`, as another artefact keeps it."""
    return replace(reference, path=os.path.relpath(reference.folder(artefact.resolve()), other.resolve()))


def open_referred(reference: TextRef, artefact: Path) -> EncodedText:
    """The prompts that `artefact` comes from; InputError when others are in their place."""
    text = EncodedText(reference.folder(artefact))
    if text.manifest.identity != reference.hash:
        raise InputError(f"{text.folder} holds other prompts than those that {artefact} comes from; move them back")
    return text


def condition_of(text: EncodedText | None, labels: Labels) -> Condition:
    """What `labels` stand for: prompts by their numbers, or classes where there is no text."""
    return labels if text is None else text.condition(labels)


def num_conditions(text: EncodedText | None, network: TransformerConfig) -> int:
    """How many prompts or classes there are."""
    return network.num_classes if text is None else len(text)


def require_text(
    text: EncodedText | None, network: TransformerConfig, *, owner: Path, max_tokens: int | None = None
) -> None:
    """InputError unless the network in `owner` reads text of this width, or reads none and is given none.

    Also for text that was made for more or fewer tokens than `max_tokens`, where that is known.
    """
    if network.text is None:
        if text is not None:
            raise InputError(
                f"--text {text.folder} has no meaning: {owner} has {network.num_classes} classes; leave it out"
            )
    elif text is None:
        raise InputError(f"{owner} reads text; give it encoded prompts with --text, which ard text encode makes")
    elif text.manifest.width != network.text.width:
        raise InputError(
            f"{text.folder} has text of width {text.manifest.width}, and {owner} reads {network.text.width}; encode "
            "the prompts with its own encoder"
        )
    elif max_tokens not in {None, text.manifest.max_tokens}:
        raise InputError(
            f"{text.folder} has prompts of at most {text.manifest.max_tokens} tokens, and {owner} reads {max_tokens}; "
            f"encode them with --max-tokens {max_tokens}"
        )


def require_classes(network: TransformerConfig, *, owner: Path | str, reader: str) -> None:
    """InputError where the network of `owner` reads text, and `reader` knows classes only."""
    if network.text:
        raise InputError(f"{owner} reads text; {reader} with classes only")


def load_text_manifest(folder: Path) -> TextManifest:
    """The manifest of a folder of encoded prompts; InputError when it is none."""
    path = folder / "text.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no encoded prompts: it has no text.json, which ard text encode writes")
    plain = read_json(path)
    if plain.pop("schema", None) != SCHEMA:
        raise InputError(f"{path} has another schema than {SCHEMA}, which this version of ard reads")
    return from_plain(TextManifest, plain, where=str(path))


def _different(prompts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([EMPTY, *map(cleaned, prompts)]))


def _prepare(folder: Path, manifest: TextManifest) -> None:
    """Refuse a folder with something else; otherwise claim it."""
    if (folder / "text.json").exists():
        stored = load_text_manifest(folder)
        if changes := differences(to_plain(stored), to_plain(manifest), ignore=frozenset({"prompts", "source"})):
            raise InputError(f"{folder} holds text of another encoder ({'; '.join(changes)}); choose another --out")
        if stored.prompts != manifest.prompts:
            raise InputError(f"{folder} holds {len(stored.prompts)} other prompts; choose another --out")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files and no text.json; choose another --out")
    else:
        write_json(folder / "text.json", {"schema": SCHEMA, **to_plain(manifest)})
    remove_leftovers(folder)


def _file_name(index: int) -> str:
    return f"text-{index:06d}.safetensors"


def _is_whole(path: Path, texts: list[str], encoder: str) -> bool:
    if not path.exists():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return set(file.keys()) == set(map(text_hash, texts)) and (file.metadata() or {}).get("encoder") == encoder
    except SafetensorError:
        return False


def _opened(path: Path) -> "safetensors.safe_open":
    try:
        return safetensors.safe_open(path, "pt")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {REPAIR}") from None
    except SafetensorError:
        raise InputError(f"{path} is damaged; {REPAIR}") from None
