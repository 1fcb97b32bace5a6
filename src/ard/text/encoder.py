"""A text encoder in a local folder, T5 (Raffel et al., 2020): prompts to the tokens that networks read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch.nn.utils.rnn import pad_sequence

from ard.core.config import fingerprint_of
from ard.core.errors import InputError, require_at_least
from ard.core.file_kinds import TRANSFORMERS_STEMS
from ard.core.files import read_json, sha256_of
from ard.core.huggingface import check_pretrained, load_pretrained, load_tokenizer, quantised_by
from ard.core.offline import quietly
from ard.core.pretrained_folder import INDEX, component_folder, find_weights
from ard.networks.condition import OneText

OPTION, EXTRA, KINDS = "--encoder", "text", ("t5",)
MAX_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # What the pipelines read of a prompt.
ORDINARY = ("a", "the", "on", "of", "and", "in", "with", "red", "blue", "cat", "dog", "house")
"""Words of which any vocabulary tells some from others."""
TOGETHER = 16  # Prompts encoded together; always these, so that their bits do not depend on where a run went on.

EncoderPrecision: TypeAlias = Literal["float32", "bfloat16"]
Encode: TypeAlias = Callable[[Sequence[str]], list[OneText]]
"""Texts to what the encoder makes of each, without padding, bfloat16, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderCard:
    """Where an encoder and its tokenizer are, and how they are run."""

    folder: Path
    tokenizer: Path
    max_tokens: int
    """What a longer prompt is cut to."""
    precision: EncoderPrecision

    @property
    def width(self) -> int:
        """Of its output."""
        return self._size("d_model")

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return self._size("vocab_size")

    def identity(self) -> str:
        """A fingerprint of everything that decides its output; reads all files."""
        tokenizer = sorted(path for path in self.tokenizer.iterdir() if path.suffix in {".json", ".model"})
        weights = [self.folder / "config.json", *find_weights(self.folder, TRANSFORMERS_STEMS).paths]
        hashes = [sha256_of(*dict.fromkeys((*weights, *tokenizer)))]
        return fingerprint_of([*hashes, self.max_tokens, self.precision])

    def _size(self, name: str) -> int:
        path = self.folder / "config.json"
        if name not in (config := read_json(path)):
            raise InputError(f"{path} has no {name}, which that of a T5 has")
        return int(config[name])


def find_text_encoder(
    folder: Path, *, max_tokens: int | None, precision: EncoderPrecision, option: str = OPTION
) -> TextEncoderCard:
    """The encoder in `folder`, which holds one with its tokenizer, or is a pipeline's; InputError when there is none.

    `max_tokens` is None for as many as the pipeline reads, `option` is what the user gave the folder with.
    """
    index = folder / INDEX
    parts = component_folder(folder, "text_encoder"), component_folder(folder, "tokenizer")
    if max_tokens is None:
        max_tokens = MAX_TOKENS.get(str(read_json(index).get("_class_name"))) if index.is_file() else None
    if max_tokens is None:
        raise InputError(
            f"{folder} does not say how many tokens of a prompt are read; add --max-tokens, 120 for PixArt-alpha and "
            "300 for -Sigma"
        )
    require_at_least(1, {"max_tokens": max_tokens})
    check_pretrained(parts[0], KINDS, option)
    if not parts[1].is_dir():
        raise InputError(f"{parts[1]} does not exist; {option} takes a folder with a tokenizer too")
    return TextEncoderCard(folder=parts[0], tokenizer=parts[1], max_tokens=max_tokens, precision=precision)


@contextmanager
def text_encoder(card: TextEncoderCard, device: torch.device) -> Iterator[Encode]:
    """The encoder, loaded; at the end of the block its memory is free again, whoever still holds it."""
    model, tokenizer = load_text_encoder(card, device)
    try:
        yield encoding(model, tokenizer, max_tokens=card.max_tokens, device=device)
    finally:
        if quantised_by(card.folder) is None:  # The others cannot be moved.
            model.to("meta")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def load_text_encoder(card: TextEncoderCard, device: torch.device, *, option: str = OPTION) -> tuple[Any, Any]:
    """The encoder's network and its tokenizer."""
    tokenizer = open_tokenizer(card, option=option)
    model = load_pretrained(
        card.folder,
        choose=lambda package: package.T5EncoderModel,
        kinds=KINDS,
        option=option,
        extra=EXTRA,
        device=device,
        dtype=getattr(torch, card.precision),
    )
    return model, tokenizer


def open_tokenizer(card: TextEncoderCard, *, option: str = OPTION) -> Any:
    """The encoder's tokenizer; InputError for one that takes all words for the same, or for others' tokens."""
    tokenizer = load_tokenizer(card.tokenizer, option=option, extra=EXTRA)
    words = [tuple(ids) for ids in _numbers(tokenizer, ORDINARY)]
    if 3 * len(set(words)) < len(words):
        raise InputError(
            f"{card.tokenizer} has no vocabulary: {', '.join(ORDINARY[-4:])} and other words are all the same to it; "
            f"give {option} a whole folder"
        )
    if (largest := max(map(max, words))) >= card.vocabulary:
        raise InputError(
            f"{card.tokenizer} is of another encoder: it has the token {largest}, and {card.folder} knows "
            f"{card.vocabulary}; give {option} both of one model"
        )
    return tokenizer


def num_cut(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> int:
    """How many of the texts have more than `max_tokens` tokens."""
    different = list(dict.fromkeys(texts))
    is_cut = dict(zip(different, (len(ids) > max_tokens for ids in _numbers(tokenizer, different)), strict=True))
    return sum(is_cut[text] for text in texts)


def encoding(model: Any, tokenizer: Any, *, max_tokens: int, device: torch.device) -> Encode:
    """What encodes texts with this network and its tokenizer."""
    return lambda texts: _encoded(model, tokenizer, texts, max_tokens, device)


@torch.no_grad()
def _encoded(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, device: torch.device) -> list[OneText]:
    found: list[OneText] = []
    for first in range(0, len(texts), TOGETHER):
        numbers = _numbers(tokenizer, texts[first : first + TOGETHER], max_tokens=max_tokens)
        if not all(numbers):
            raise InputError("the tokenizer makes no token of an empty prompt; T5's ends every text with one")
        ids = pad_sequence([torch.tensor(one) for one in numbers], batch_first=True).to(device)
        mask = pad_sequence([torch.ones(len(one), dtype=torch.long) for one in numbers], batch_first=True).to(device)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found += [row[: len(one)].to("cpu", torch.bfloat16) for row, one in zip(states, numbers, strict=True)]
    return found


def _numbers(tokenizer: Any, texts: Sequence[str], *, max_tokens: int | None = None) -> list[list[int]]:
    """The tokens of each text, at most `max_tokens`; not padded, because a tokenizer may have nothing to pad with."""
    cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
    with quietly():  # It warns of long texts.
        found: list[list[int]] = tokenizer(list(texts), **cut)["input_ids"] if texts else []
    return found
