"""A text encoder in a local folder, T5 (Raffel et al., 2020): prompts to the tokens that networks read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from ard.condition import OneText
from ard.config import fingerprint_of
from ard.errors import InputError, require_at_least
from ard.files import read_json, sha256_of
from ard.models.huggingface import check_pretrained, load_pretrained, load_tokenizer

OPTION, EXTRA, KINDS = "--encoder", "text", ("t5",)
MAX_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # What the pipelines read of a prompt.
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
        path = self.folder / "config.json"
        width = read_json(path).get("d_model")
        if not isinstance(width, int) or width < 1:
            raise InputError(f"{path}: d_model is {width!r}; the width of a T5 is expected")
        return width

    def identity(self) -> str:
        """A fingerprint of everything that decides its output; reads all files."""
        tokenizer = sorted(path for path in self.tokenizer.iterdir() if path.suffix in {".json", ".model"})
        weights = [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]
        hashes = [sha256_of(*dict.fromkeys((*weights, *tokenizer)))]
        return fingerprint_of([*hashes, self.max_tokens, self.precision])


def find_text_encoder(
    folder: Path, *, max_tokens: int | None, precision: EncoderPrecision, option: str = OPTION
) -> TextEncoderCard:
    """The encoder in `folder`, which holds one with its tokenizer, or is a pipeline's; InputError when there is none.

    `max_tokens` is None for as many as the pipeline reads, `option` is what the user gave the folder with.
    """
    index = folder / "model_index.json"
    parts = (folder / "text_encoder", folder / "tokenizer") if index.is_file() else (folder, folder)
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
        model.to("meta")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def load_text_encoder(card: TextEncoderCard, device: torch.device, *, option: str = OPTION) -> tuple[Any, Any]:
    """The encoder's network and its tokenizer."""
    tokenizer = load_tokenizer(card.tokenizer, option=option, extra=EXTRA)
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


def encoding(model: Any, tokenizer: Any, *, max_tokens: int, device: torch.device) -> Encode:
    """What encodes texts with this network and its tokenizer."""
    return lambda texts: _encoded(model, tokenizer, texts, max_tokens, device)


@torch.no_grad()
def _encoded(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, device: torch.device) -> list[OneText]:
    found: list[OneText] = []
    for first in range(0, len(texts), TOGETHER):
        given = tokenizer(
            list(texts[first : first + TOGETHER]),
            padding="longest",
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        ).to(device)
        mask = given.attention_mask.bool()
        if not mask.any(dim=1).all():
            raise InputError("the tokenizer makes no token of an empty prompt; T5's ends every text with one")
        states = model(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
        found += [row[kept].to("cpu", torch.bfloat16) for row, kept in zip(states, mask, strict=True)]
    return found
