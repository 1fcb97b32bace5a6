"""The pieces of a diffusion transformer: embedders, adaLN-Zero block, final layer (Peebles and Xie, 2023)."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from ard.core.types import Heads, Labels, Patches, Times, Tokens

Vector: TypeAlias = Float[Tensor, "row embedding"]  # One per latent; never one per token.

Attend = Callable[[int, Heads, Heads, Heads], Heads]
"""The seam at which history meets the network: (block, q, k, v) to the attention's output; the lowest block is 0."""


def attend_self(_block: int, q: Heads, k: Heads, v: Heads) -> Heads:
    """Ordinary self-attention: each latent reads itself only."""
    return scaled_dot_product_attention(q, k, v)


def modulate(x: Tokens, shift: Vector, scale: Vector, *, eps: float = 1e-6) -> Tokens:
    """adaLN: the normalised tokens, scaled and shifted per latent. DiT's eps is 1e-6."""
    normed = layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1))


class Computing(nn.Module):
    """The precision in which a network computes, which follows `.to` as weights do.

    Weights themselves do not tell: they may be stored in 8 bits and cast layer by layer, or be quantised, which leaves
    no parameter to look at.
    """

    mark: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mark", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The precision."""
        return self.mark.dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mark.device


class TimestepEmbedder(nn.Module):
    """Sinusoids of the network's time through a two-layer network.

    The frequencies are 10000^(-i / (half - frequency_shift)), i from 0: DiT's shift is 0, that of diffusers' DiT is 1.
    """

    def __init__(self, width: int, *, num_frequencies: int = 256, frequency_shift: int = 0) -> None:
        super().__init__()
        self.num_frequencies, self.frequency_shift = num_frequencies, frequency_shift
        self.mlp = nn.Sequential(nn.Linear(num_frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.computing = Computing()

    def forward(self, t: Times) -> Vector:
        """Cosines first, then sines, as DiT orders them. The angles have the precision of `t`, not the weights'."""
        half = self.num_frequencies // 2
        exponents = torch.arange(half, device=t.device, dtype=t.dtype) / (half - self.frequency_shift)
        angles = t.unsqueeze(-1) * torch.exp(-math.log(10000) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.computing.dtype))


class LabelEmbedder(nn.Module):
    """A table of class vectors; its last row stands for no class, where there is one: guidance needs it."""

    def __init__(self, num_classes: int, width: int, *, null_class: bool = True) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + null_class, width)

    def forward(self, label: Labels) -> Vector:
        """One vector per label."""
        return self.embedding_table(label)


class Attention(nn.Module):
    """Multi-head self-attention whose core is given by the caller."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tokens, attend: Attend, block: int) -> Tokens:
        """Project, attend, project back."""
        return self.join(attend(block, *self.heads(x)))

    def heads(self, x: Tokens) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # row head token e
        return q, k, v

    def join(self, attended: Heads) -> Tokens:
        """What the heads have gathered, projected back."""
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around a GELU (tanh form)."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tokens) -> Tokens:
        """Per token."""
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block with adaLN-Zero conditioning."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, *, mlp_norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.mlp_norm_eps = mlp_norm_eps
        self.attn = Attention(width, num_heads)
        self.mlp = Mlp(width, mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tokens, vector: Vector, attend: Attend, block: int) -> Tokens:
        """The modulation is computed once per latent, here, and broadcast over its tokens."""
        modulation = self.adaLN_modulation(vector).chunk(6, dim=-1)
        return self.leave(x, attend(block, *self.enter(x, *modulation[:2])), *modulation[2:])

    def enter(self, x: Tokens, shift: Vector, scale: Vector) -> tuple[Heads, Heads, Heads]:
        """Up to the attention: its queries, keys and values."""
        return self.attn.heads(modulate(x, shift, scale))

    def leave(self, x: Tokens, attended: Heads, gate_a: Vector, shift: Vector, scale: Vector, gate_m: Vector) -> Tokens:
        """From the attention on: its output and the MLP's are added through their gates."""
        x = torch.addcmul(x, gate_a.unsqueeze(1), self.attn.join(attended))
        normed = modulate(x, shift, scale, eps=self.mlp_norm_eps)
        return torch.addcmul(x, gate_m.unsqueeze(1), self.mlp(normed))


class FinalLayer(nn.Module):
    """Tokens to the values of their patches."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tokens, vector: Vector) -> Patches:
        """Modulate and project."""
        shift, scale = self.adaLN_modulation(vector).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


def sincos_positions(width: int, grid: int, *, scale: float = 1.0) -> Float[Tensor, "token embedding"]:
    """Fixed sine-cosine positions of a square grid: half of the width for the column, then half for the row.

    Patches are 1 / `scale` apart, so that a finer grid of the same picture has the positions of a coarser one.
    """
    quarter = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    frequencies = 10000.0**-quarter
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None].double() / scale * frequencies for axis in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()
