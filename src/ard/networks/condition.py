"""What an image is asked to show: its class, or a text as a text encoder gives it."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ard.core.devices import send
from ard.core.types import Labels

TextTokens: TypeAlias = Float[Tensor, "prompt text_token text_width"]
TextMask: TypeAlias = Bool[Tensor, "prompt text_token"]  # True where there is text.
OneText: TypeAlias = Float[Tensor, "_ text_width"]  # A single prompt's tokens, without padding; each has its number.


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """Encoded prompts, padded to one length. It is measured, cut, picked from and moved like a tensor of labels."""

    tokens: TextTokens
    mask: TextMask
    null: OneText
    """The empty prompt's, which guidance subtracts."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " picked"] | slice) -> "Prompts":
        return Prompts(tokens=self.tokens[rows], mask=self.mask[rows], null=self.null)

    def split(self, size: int) -> "list[Prompts]":
        """Parts of `size` prompts, the last of what is left."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def to(self, device: torch.device) -> "Prompts":
        """The same on a device."""
        return Prompts(tokens=send(self.tokens, device), mask=send(self.mask, device), null=send(self.null, device))

    def pin_memory(self) -> "Prompts":
        """The same in page-locked memory, from which a GPU copies while others compute."""
        return Prompts(tokens=self.tokens.pin_memory(), mask=self.mask.pin_memory(), null=self.null.pin_memory())


Condition: TypeAlias = Labels | Prompts


def to_device(condition: Condition, device: torch.device) -> Condition:
    """The same on a device, without waiting for what is computed there."""
    return condition.to(device) if isinstance(condition, Prompts) else send(condition, device)


def padded(texts: list[OneText], *, null: OneText, length: int) -> Prompts:
    """Texts, each with its real tokens only, as one batch of `length` tokens; what is padded with is never read."""
    tokens = null.new_zeros(len(texts), length, null.shape[1])
    mask = torch.zeros(len(texts), length, dtype=torch.bool, device=null.device)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = True
    return Prompts(tokens=tokens, mask=mask, null=null)


def with_unconditional(condition: Condition, *, num_classes: int) -> Int[Tensor, " both"] | Prompts:
    """The condition and behind it as many rows of none: the label `num_classes`, or the empty prompt."""
    if not isinstance(condition, Prompts):
        return torch.cat([condition, torch.full_like(condition, num_classes)])
    length = max(condition.tokens.shape[1], len(condition.null))
    missing = length - condition.tokens.shape[1]
    empty = padded([condition.null] * len(condition), null=condition.null, length=length)
    return Prompts(
        tokens=torch.cat([pad(condition.tokens, (0, 0, 0, missing)), empty.tokens]),
        mask=torch.cat([pad(condition.mask, (0, missing)), empty.mask]),
        null=condition.null,
    )
