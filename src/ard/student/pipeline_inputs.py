"""What a caller of ARDPipeline may give, made into what a student reads; ValueError in one line for anything else.

Callers are programs, so a number may be Python's, numpy's or a tensor, and several may be a list, an array or a tensor.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from ard.core.draws import normal
from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.networks.condition import Prompts
from ard.networks.transformer import TransformerConfig

Given: TypeAlias = object
"""An argument as it comes: what it may be is checked here."""


def read_labels(given: Given, *, names: Mapping[str, int], num_classes: int) -> Labels:
    """The labels that numbers or names stand for, alone or several."""
    allowed = f"allowed: 0 to {num_classes - 1}{', or a name in pipe.labels' if names else ''}"
    found = _several(given)
    if not found:
        raise InputError(f"class_labels is empty; {allowed}")
    labels = [names.get(one.strip(), -1) if isinstance(one, str) else _whole(one) for one in found]
    for label, one in zip(labels, found, strict=True):
        if label is None or not 0 <= label < num_classes:
            raise InputError(f"class label {_short(one)} is unknown; {allowed}")
    return torch.tensor(labels)


def read_texts(given: Given) -> list[str]:
    """The texts of one prompt or several."""
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InputError(f"prompt is {_short(given)}; a text, a list of them, or encoded prompts are expected")
    if not texts:
        raise InputError("prompt is empty; this student reads text: give one, or a list of them")
    return texts


def read_embeddings(embeddings: Given, mask: Given, *, width: int) -> Prompts:
    """Prompts as a text encoder gives them, with a row of the mask for each; without a mask all tokens are text."""
    tokens = _floats(embeddings, "prompt_embeds")
    if tokens.ndim != 3 or tokens.shape[2] != width or not len(tokens):
        raise InputError(f"prompt_embeds is {_sizes(tokens)}; this student needs prompts x tokens x {width}")
    kept = torch.ones(tokens.shape[:2], dtype=torch.bool)
    if mask is not None:
        kept = _floats(mask, "prompt_attention_mask").bool().to(tokens.device)
    if kept.shape != tokens.shape[:2] or not kept.any(dim=1).all():
        raise InputError(
            f"prompt_attention_mask is {_sizes(kept)}; a row for each of {len(tokens)} prompts is needed, with a 1 for "
            f"each token of its text and {tokens.shape[1]} numbers"
        )
    return Prompts(tokens=tokens, mask=kept.to(tokens.device), null=tokens[0])  # Nothing is guided, so null is unread.


def read_noise(
    generator: Given, latents: Given, *, count: int, network: TransformerConfig, device: torch.device
) -> Latents:
    """Each picture's noise: the given one, or from its own generator; one alone is asked for one after the other."""
    shape = (network.channels, network.latent_size, network.latent_size)
    if latents is not None:
        found = _floats(latents, "latents")
        if found.shape != (count, *shape):
            wanted = " x ".join(map(str, (count, *shape)))
            raise InputError(f"latents is {_sizes(found)}; this student and these {count} pictures need {wanted}")
        return found.to(device, torch.float32)
    generators = _generators(generator, count)
    if len(generators) != count:
        raise InputError(f"{len(generators)} generators for {count} pictures; give one, or one for each")
    return torch.stack([normal(shape, generator=one).to(device) for one in generators])


def read_whole(given: Given, name: str, *, at_least: int) -> int:
    """A whole number from `at_least` on."""
    number = _whole(given)
    if number is None or number < at_least:
        raise InputError(f"{name} is {_short(given)}; a whole number is expected, at least {at_least}")
    return number


def require_own(values: Mapping[str, tuple[Given, Any, str]]) -> None:
    """InputError that names the first argument that is given and is not the student's own: (given, own, why)."""
    for name, (given, own, why) in values.items():
        if given is not None and not _is_equal(given, own):
            raise InputError(f"{name} is {_short(given)}; {why}")


def _generators(given: Given, count: int) -> Sequence[Generator | None]:
    if given is None or isinstance(given, Generator):
        return [given] * count
    if isinstance(given, list | tuple) and all(isinstance(one, Generator) for one in given):
        return given
    raise InputError(
        f"generator is {_short(given)}; a torch.Generator is expected, such as torch.Generator().manual_seed(7), or a "
        "list with one for each picture"
    )


def _several(given: Given) -> list[Any]:
    """What is given, as a list; one thing alone is a list of it, and None an empty one."""
    if given is None:
        return []
    if isinstance(given, Tensor | np.ndarray | np.generic):
        flat: list[Any] = np.asarray(given.cpu() if isinstance(given, Tensor) else given).reshape(-1).tolist()
        return flat
    if isinstance(given, list | tuple | range):
        return list(given)
    return [given]


def _whole(given: Given) -> int | None:
    """A whole number of Python, numpy or torch; None for what is none, such as 3.7 or True."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 0:
        given = given.item()
    is_one = isinstance(given, Integral) and not isinstance(given, bool | np.bool_)
    return int(given) if is_one else None  # type: ignore[call-overload]  # an Integral has an int


def _floats(given: Given, name: str) -> Tensor:
    """A tensor of real numbers from a tensor or an array."""
    try:
        found = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError):
        found = torch.zeros(0, dtype=torch.complex64)
    if found.is_complex():
        raise InputError(f"{name} is {_short(given)}; a tensor or an array of numbers is expected")
    return found


def _is_equal(given: Given, own: Any) -> bool:
    try:
        return bool(given == own)
    except (TypeError, ValueError, RuntimeError):  # A comparison of several numbers has no single answer.
        return False


def _sizes(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _short(given: Given) -> str:
    """What is given in one line of at most 60 characters."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
