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
from typing import ClassVar

import torch
from torch import Tensor

from ard.core.config import fingerprint_of
from ard.core.errors import InputError, require_at_least, require_at_most
from ard.core.files import followed
from ard.core.sharded.making import KEPT, Claim, publish_shard, require_claimable
from ard.core.sharded.rows import Shards
from ard.core.sharded.store import Checksums, Expected, Kind, ShardedManifest, open_shards, read_record
from ard.core.stopping import stopping
from ard.core.types import Labels
from ard.networks.condition import Condition, Prompts, padded
from ard.networks.transformer import MAX_SIZE, TransformerConfig
from ard.text.encoder import Encode

PER_FILE = 64  # Prompts of a file: 20 MB for T5-XXL and prompts of 40 tokens.
EMPTY = ""
TEXT = Kind(
    record="text.json",
    head={"schema": 1},
    stem="text",
    name="folder of encoded prompts",
    holds="encoded prompts",
    command="ard text encode",
    free=frozenset({"source"}),
    records_may_name_none=True,
)


@dataclass(frozen=True, kw_only=True)
class TextManifest(ShardedManifest):
    """What a folder of encoded prompts says of itself."""

    KIND: ClassVar[Kind] = TEXT

    encoder: str
    """A fingerprint of the encoder, its tokenizer and how they are run."""
    source: str
    """The name of the encoder's folder."""
    width: int
    max_tokens: int
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be meant."""
        sizes = {"width": self.width, "max_tokens": self.max_tokens}
        require_at_least(1, sizes)
        require_at_most(MAX_SIZE, sizes)

    @functools.cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides the content."""
        return fingerprint_of([self.encoder, self.prompts])

    @functools.cached_property
    def different(self) -> list[str]:
        """The different texts that are encoded, the empty one first."""
        return _different(self.prompts)

    @property
    def total(self) -> int:
        """How many different texts there are."""
        return len(self.different)

    @property
    def num_shards(self) -> int:
        """How many shard files there are."""
        return -(-self.total // PER_FILE)

    def texts(self, shard: int) -> list[str]:
        """The texts of `shard`."""
        return self.different[shard * PER_FILE : (shard + 1) * PER_FILE]

    @property
    def shard_identity(self) -> str:
        """What every shard carries; which texts it has is told by their names."""
        return self.encoder

    def expected(self, shard: int) -> Expected:
        """What `shard` must hold: each of its texts, of any number of tokens."""
        return Expected({text_hash(text): (torch.bfloat16, (None, self.width)) for text in self.texts(shard)}, {})


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
        return followed(self.path, seen_from=artefact)


def cleaned(prompt: str) -> str:
    """What is encoded of a prompt: PixArt's pipelines take it in lower case, without spaces around it."""
    return prompt.lower().strip()


def text_hash(text: str) -> str:
    """The name of a text's tensor."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_prompts(folder: Path, manifest: TextManifest, encode: Encode, *, progress: Callable[[int], object]) -> None:
    """Make or complete the folder: files that are there stay, the others are made.

    A signal ends the work by Stopped after the file that is being made.
    """
    claim = Claim(folder, manifest)
    missing = claim.missing(range(manifest.num_shards))
    progress(sum(len(manifest.texts(shard)) for shard in range(manifest.num_shards) if shard not in missing))
    with stopping() as stop:
        for shard in missing:
            texts = manifest.texts(shard)
            publish_shard(folder, manifest, shard, dict(zip(map(text_hash, texts), encode(texts), strict=True)))
            progress(len(texts))
            if shard != missing[-1]:
                stop.pause(KEPT)
    claim.finish()


def encode_now(prompts: Sequence[str], encode: Encode, *, max_tokens: int) -> Prompts:
    """The prompts, encoded without a folder: the bits are those of one that lists the same prompts."""
    texts = _different(prompts)
    found = dict(zip(texts, encode(texts), strict=True))
    return padded([found[cleaned(prompt)] for prompt in prompts], null=found[EMPTY], length=max_tokens)


def is_encoded(folder: Path, manifest: TextManifest) -> bool:
    """Whether the folder holds all of it; InputError when it holds something else."""
    require_claimable(folder, manifest)
    if not (folder / TEXT.record).exists():
        return False
    claim = Claim(folder, manifest)
    whole = not claim.missing(range(manifest.num_shards))
    claim.finish()
    return whole


class EncodedText:
    """The prompts of a folder, each by its number in the list."""

    def __init__(self, folder: Path) -> None:
        """InputError when the folder holds none, or not all."""
        self.folder = folder
        self.manifest, checksums = load_text_manifest(folder)
        self._shards = Shards(open_shards(folder, self.manifest, checksums), TEXT)
        self._places = {text_hash(text): place // PER_FILE for place, text in enumerate(self.manifest.different)}
        self._names = [text_hash(cleaned(prompt)) for prompt in self.manifest.prompts]
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
        return self._shards.tensor(self._places[name], name)


def seen_from(reference: TextRef, artefact: Path, other: Path) -> TextRef:
    """The reference of `artefact`, as another artefact keeps it."""
    return replace(reference, path=os.path.relpath(reference.folder(artefact.resolve()), other.resolve()))


def open_referred(reference: TextRef, artefact: Path) -> EncodedText:
    """The prompts that `artefact` comes from; InputError when others are in their place."""
    folder = reference.folder(artefact)
    if load_text_manifest(folder)[0].identity != reference.hash:
        raise InputError(f"{folder} holds other prompts than those that {artefact} comes from; move them back")
    return EncodedText(folder)


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


def load_text_manifest(folder: Path) -> tuple[TextManifest, Checksums]:
    """The manifest of a folder of encoded prompts and its shards' checksums; InputError when it is none."""
    return read_record(TextManifest, folder)


def _different(prompts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([EMPTY, *map(cleaned, prompts)]))
