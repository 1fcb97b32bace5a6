"""The discriminator of the loss R + D (Section 3.3): light heads on the features of the frozen teacher.

The features are LADD's (Sauer et al., 2024), the heads StyleGAN-T's (Sauer et al., 2023) with a projection on the
conditioning (Miyato and Koyama, 2018); this is what the authors' re-implementation combines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from ard.core.errors import InputError, require_at_least
from ard.core.types import ChannelFirst, Latents, Logits, Times, Tokens
from ard.networks.condition import Condition
from ard.networks.dit_layers import Vector, attend_self
from ard.networks.transformer import Backbone, TransformerConfig, vector_of

RASTER_KERNEL = 9  # The authors' 1-D kernel.
VIRTUAL_BATCH = 8  # StyleGAN-T's size of a group in the local batch norm.
NORM_GROUPS = 4  # Divides every width, and leaves enough values in a group when a latent has a single token.


class HeadNorm(StrEnum):
    """What normalises a head's hidden values."""

    GROUP = "group"  # Over the tokens of one latent, so that no latent's logits depend on its batch.
    LOCAL_BATCH = "local_batch"  # Over groups of up to 8 latents: StyleGAN-T's and the authors'.
    NONE = "none"


class TokenMixing(StrEnum):
    """Which neighbours a head's convolution joins."""

    GRID = "grid"  # 3 x 3 tokens of the image, so that neighbours in the kernel are neighbours in the picture.
    RASTER = "raster"  # 9 tokens in raster order, closed to a circle, as the authors have it: rows run into each other.


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Where the heads are and what they are made of."""

    head_depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.75, 1.0)
    """Heads after these parts of the teacher's depth; empty: after every block."""
    head_norm: HeadNorm = HeadNorm.GROUP
    """What normalises the heads: group, local_batch (the authors'), none."""
    head_mixing: TokenMixing = TokenMixing.GRID
    """What the heads' convolution joins: grid (3 x 3 tokens) or raster (9 in a row, the authors')."""
    head_width: int = 64
    """Values per token that are projected on the conditioning (StyleGAN-T's 64)."""

    def __post_init__(self) -> None:
        """Refuse depths outside of the network."""
        require_at_least(1, {"head_width": self.head_width})
        for depth in self.head_depths:
            if not 0 < depth <= 1:
                raise InputError(f"head_depths has {depth}; allowed: parts of the depth, above 0 and up to 1")

    def blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks, counted from 0, whose outputs the heads read, in a network of `depth` blocks."""
        if not self.head_depths:
            return tuple(range(depth))
        return tuple(sorted({max(1, round(part * depth)) - 1 for part in self.head_depths}))


class Discriminator(nn.Module):
    """The heads only: features of the frozen teacher in, a logit per latent, head and token out."""

    def __init__(self, config: DiscriminatorConfig, network: TransformerConfig) -> None:
        super().__init__()
        self.config, self.blocks = config, config.blocks(network.depth)
        self.heads = nn.ModuleList(Head(config, network.width) for _ in self.blocks)

    def forward(self, features: Sequence[Tokens], vector: Vector) -> Logits:
        """High where the features look real. Each head sees its own block's features only. At least float32."""
        pairs = zip(self.heads, features, strict=True)
        logits = torch.stack([head(tokens, vector) for head, tokens in pairs], dim=1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Head(nn.Module):
    """One token to the next by convolutions, and a projection on the conditioning (StyleGAN-T's head)."""

    def __init__(self, config: DiscriminatorConfig, width: int) -> None:
        super().__init__()
        self.width = config.head_width
        self.enter = spectral_norm(nn.Conv1d(width, width, 1))
        self.enter_norm = _norm(config.head_norm, width)
        self.mix = spectral_norm(_mixing(config.head_mixing, width))
        self.mix_norm = _norm(config.head_norm, width)
        self.leave = spectral_norm(nn.Conv1d(width, config.head_width, 1))
        self.project = nn.Linear(width, config.head_width)

    def forward(self, tokens: Tokens, vector: Vector) -> Tensor:
        """A logit per token: row, token."""
        h = leaky_relu(self.enter_norm(self.enter(tokens.transpose(1, 2))), 0.2)  # row d token
        h = (leaky_relu(self.mix_norm(_joined(self.mix, h)), 0.2) + h) / math.sqrt(2)
        return (self.leave(h) * self.project(vector).unsqueeze(2)).sum(dim=1) / math.sqrt(self.width)


class LocalBatchNorm(nn.Module):
    """Batch norm over groups of up to 8 latents and their tokens, without running statistics (StyleGAN-T).

    The groups are as equal as they can be, so that any batch size works.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1)), nn.Parameter(torch.zeros(width, 1))

    def forward(self, x: ChannelFirst) -> ChannelFirst:
        """Normalise each group by its own mean and variance."""
        groups = x.tensor_split(math.ceil(len(x) / VIRTUAL_BATCH))
        normed = [(g - g.mean((0, 2), keepdim=True)) * _inverse_deviation(g) for g in groups]
        return torch.cat(normed) * self.weight + self.bias


def new_discriminator(config: DiscriminatorConfig, network: TransformerConfig, *, seed: int) -> Discriminator:
    """Heads with torch's usual initial weights, which depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # The CPU's only: a GPU's stays as it is.
        return Discriminator(config, network)


def teacher_features(
    network: Backbone, x: Latents, t: Times, condition: Condition, *, blocks: Sequence[int]
) -> tuple[list[Tokens], Vector]:
    """The outputs of `blocks` at `x`, and the conditioning vector. Gradients flow through the frozen network into `x`.

    `t` is in the network's own units. Blocks above the highest that is asked for are not computed.
    """
    tokens, conditioning = network.embed(x), network.condition(t, condition)
    found = []
    for index in range(max(blocks) + 1):
        tokens = network.blocks[index](tokens, conditioning, attend_self, index)
        if index in blocks:
            found.append(tokens)
    return found, vector_of(conditioning)


def _norm(kind: HeadNorm, width: int) -> nn.Module:
    match kind:
        case HeadNorm.GROUP:
            return nn.GroupNorm(NORM_GROUPS, width)
        case HeadNorm.LOCAL_BATCH:
            return LocalBatchNorm(width)
        case HeadNorm.NONE:
            return nn.Identity()


def _mixing(kind: TokenMixing, width: int) -> nn.Module:
    match kind:
        case TokenMixing.GRID:
            return nn.Conv2d(width, width, 3, padding=1)
        case TokenMixing.RASTER:
            return nn.Conv1d(width, width, RASTER_KERNEL)


def _joined(mix: nn.Module, h: ChannelFirst) -> ChannelFirst:
    """The convolution over the tokens; it keeps their number, whatever it is."""
    num_tokens = h.shape[2]
    if isinstance(mix, nn.Conv2d):
        grid = math.isqrt(num_tokens)  # Latents are square.
        return mix(h.unflatten(2, (grid, grid))).flatten(2)
    reach = RASTER_KERNEL // 2
    around = torch.arange(-reach, num_tokens + reach, device=h.device) % num_tokens  # Also when it wraps twice.
    return mix(h[:, :, around])


def _inverse_deviation(group: ChannelFirst) -> Tensor:
    return (group.var((0, 2), correction=0, keepdim=True) + 1e-5).rsqrt()
