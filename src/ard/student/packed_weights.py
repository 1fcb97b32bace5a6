"""Products on a CPU with their weights packed once, instead of at every call (oneDNN, which inductor calls too)."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ard.core.types import Tokens
from ard.networks.dit_layers import Mlp
from ard.networks.pixart_layers import TextBlock
from ard.networks.registry import require_dit
from ard.student.student import Student

ROWS = 512  # What the packing is optimised for; any number is right.


def with_packed_weights(student: Student) -> Student:
    """The same student for drawing: its blocks' products have packed copies of their weights, the rest it shares.

    Itself on other devices than a CPU, in other precisions than float32, and where PyTorch has no such products.
    """
    weight = require_dit(student.network).x_embedder.weight
    there = torch.backends.mkldnn.is_available() and hasattr(_products(), "_linear_pointwise")
    if not (weight.device.type == "cpu" and weight.dtype == torch.float32 and there):
        return student
    packed = copy.deepcopy(student, {id(shared): shared for shared in student.parameters()})
    blocks: Any = packed.network.blocks
    for block in blocks:
        block.attn.qkv, block.attn.proj = _Packed(block.attn.qkv), _Packed(block.attn.proj)
        block.mlp = _PackedMlp(block.mlp)
        if isinstance(block, TextBlock):
            reader: Any = block.cross_attn
            reader.q, reader.kv, reader.proj = _Packed(reader.q), _Packed(reader.kv), _Packed(reader.proj)
    return packed


def _products() -> Any:
    """PyTorch's own, whose names are private; inductor writes calls of them into what it compiles."""
    return torch.ops.mkldnn


class _Packed(nn.Module):
    """A linear layer, with the tanh GELU after it if asked for."""

    def __init__(self, layer: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.weight: Tensor = _products()._reorder_linear_weight(layer.weight.detach(), ROWS)  # noqa: SLF001
        self.bias = layer.bias
        self.after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Float[Tensor, "row token given"]) -> Float[Tensor, "row token made"]:
        """Per token."""
        return _products()._linear_pointwise(x, self.weight, self.bias, *self.after)  # noqa: SLF001


class _PackedMlp(nn.Module):
    """An MLP whose GELU is part of the first product."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = _Packed(mlp.fc1, gelu=True), _Packed(mlp.fc2)

    def forward(self, x: Tokens) -> Tokens:
        """Per token."""
        return self.fc2(self.fc1(x))
