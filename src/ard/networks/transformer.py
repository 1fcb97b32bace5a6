"""Diffusion transformers: what is asked of any, and DiT's architecture (Peebles and Xie, 2023), on a class or a text.

With a text it is PixArt's (Chen et al., 2024): DiT with a cross-attention in each block and one modulation for all.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import init

from ard.core.config import later
from ard.core.errors import InputError, require_at_least, require_at_most
from ard.core.types import Latents, Patches, Times, Tokens
from ard.networks.block_execution import RunBlock, run_as_it_is
from ard.networks.condition import Condition, Prompts
from ard.networks.dit_layers import (
    Attend,
    Block,
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    Vector,
    attend_self,
    sincos_positions,
)
from ard.networks.drawing import draw
from ard.networks.pixart_layers import Conditioning, TextBlock, TextConditioning, TextEmbedder, TextFinalLayer

RowTimes: TypeAlias = Float[Tensor, " row"]


MAX_SIZE, MAX_DEPTH, MAX_CLASSES = 1 << 16, 1 << 10, 1 << 24  # Far above any network that exists.


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How a network reads text."""

    width: int
    """Of the text encoder's output: 4096 for the T5-XXL of PixArt."""
    picture_size: int | None = None
    """The picture's side in pixels, where the network is told it as PixArt-alpha at 1024 pixels is; None: it is not."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be meant."""
        sizes = {"text width": self.width, "picture_size": self.picture_size}
        given = {name: size for name, size in sizes.items() if size is not None}
        require_at_least(1, given)
        require_at_most(MAX_SIZE, given)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a network. `latent_size`, `channels` and `num_classes` come from the data."""

    width: int
    depth: int
    num_heads: int
    patch_size: int
    latent_size: int
    channels: int
    num_classes: int
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    """Twice the output channels, as DiT's checkpoints have; the second half is ignored when solving."""
    frequency_shift: int = later(0)
    """Of the time's sinusoids: DiT's is 0, that of diffusers' DiT 1."""
    mlp_norm_eps: float = later(1e-6)
    """Of the LayerNorm before each MLP: DiT's is 1e-6, that of diffusers' DiT 1e-5; all others have 1e-6."""
    backbone: str = later("dit")
    """The network's architecture, by its name in `models.backbones`."""
    text: TextConfig | None = later(None)
    """Text instead of classes, of which there are then none: `num_classes` is 0. None: classes."""
    position_scale: float = later(1.0)
    """Patches are 1 / `position_scale` apart in the table of positions; PixArt's is 2 at 1024 pixels."""
    null_class: bool = later(default=True)
    """Whether there is a row for no class, which guidance needs; a teacher that was trained without has guidance 1."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        sizes = ("width", "depth", "num_heads", "patch_size", "latent_size", "channels")
        require_at_least(1, {name: getattr(self, name) for name in sizes})
        require_at_most(MAX_SIZE, {name: getattr(self, name) for name in sizes})
        require_at_most(MAX_DEPTH, {"depth": self.depth, "mlp_ratio": self.mlp_ratio})
        require_at_most(MAX_CLASSES, {"num_classes": self.num_classes})
        if not self.width * self.mlp_ratio >= 1:
            raise InputError(f"mlp_ratio is {self.mlp_ratio}, which leaves no hidden layer; give a positive number")
        self._check_condition()
        if self.frequency_shift not in {0, 1} or not 0 < self.mlp_norm_eps < 1:
            told = f"frequency_shift is {self.frequency_shift} and mlp_norm_eps {self.mlp_norm_eps}"
            raise InputError(f"{told}; allowed: 0 or 1, and a number between 0 and 1")
        if self.latent_size % self.patch_size:
            raise InputError(f"patch size {self.patch_size} does not divide the latent size {self.latent_size}")
        if self.width % (2 * self.num_heads) or self.width % 4:
            raise InputError(f"width {self.width} must be a multiple of 4 and of twice the {self.num_heads} heads")

    def _check_condition(self) -> None:
        """InputError unless there are either classes or a text, and what the positions and the picture's size need."""
        if self.text is None:
            require_at_least(1, {"num_classes": self.num_classes})
        elif self.num_classes:
            raise InputError(f"num_classes is {self.num_classes}; a network that reads text has 0")
        if not 0 < self.position_scale < math.inf:
            raise InputError(f"position_scale is {self.position_scale}; it must be a positive number")
        if self.text and self.text.picture_size is not None and self.width % 3:
            raise InputError(f"width {self.width} must be a multiple of 3, to tell a picture's height, width and ratio")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.latent_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """P, tokens per latent."""
        return self.grid**2


def check_shape(shape: tuple[int, ...]) -> None:
    """InputError unless `shape` is that of a latent: channel, height and width."""
    if len(shape) != 3 or not all(1 <= size <= MAX_SIZE for size in shape):
        raise InputError(f"shape is {str(shape)[:60]}; channel, height and width are needed, each 1 to {MAX_SIZE}")


SIZES: dict[str, tuple[int, int, int]] = {
    # name: (depth, width, heads); S to XL are DiT's, Table 1 of Peebles and Xie (2023).
    "tiny": (4, 64, 2),
    "small": (6, 96, 3),
    "DiT-S": (12, 384, 6),
    "DiT-B": (12, 768, 12),
    "DiT-L": (24, 1024, 16),
    "DiT-XL": (28, 1152, 16),
}


def named_config(name: str, *, latent_size: int, channels: int, num_classes: int) -> TransformerConfig:
    """The configuration called `name`, a size and a patch size such as DiT-XL/2 or tiny/2."""
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in {"1", "2", "4", "8"}:
        raise InputError(
            f"unknown model {name!r}; allowed: one of {', '.join(SIZES)}, a slash, and a patch of 1, 2, 4, 8"
        )
    depth, width, num_heads = SIZES[size]
    return TransformerConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        patch_size=int(patch),
        latent_size=latent_size,
        channels=channels,
        num_classes=num_classes,
    )


class Backbone(nn.Module, ABC):
    """Latents, their times and conditions in; one prediction per latent out.

    A condition is a label, where `num_classes` means no class, or a text, where the empty prompt means none. A chain of
    blocks between an embedder and an output layer, so that a student can fold its steps into the rows and give the
    self-attention of the lowest blocks a history.
    """

    config: TransformerConfig
    blocks: nn.ModuleList
    """Lowest first; each maps (tokens, conditioning, attend, index) to tokens, with `attend` as its self-attention."""
    final_layer: nn.Module
    """Maps (tokens, vector) to the values of their patches by a last linear layer called `linear`."""
    run_block: RunBlock = staticmethod(run_as_it_is)
    """How a block is run; training may compile it, or recompute it in the backward pass."""

    @abstractmethod
    def embed(self, x: Latents) -> Tokens:
        """Latents to tokens, with their positions where the tokens carry them."""

    @abstractmethod
    def condition(self, t: RowTimes, condition: Condition) -> Conditioning:
        """What the blocks read: for a class one vector per row; `t` is in the network's own units.

        `len(t) / len(condition)` successive rows have the same condition, such as the steps of a trajectory.
        """

    @abstractmethod
    def unpatchify(self, values: Patches) -> Latents:
        """What the output layer gives to a latent; channels beyond the latent's are dropped."""

    def forward(self, x: Latents, t: Times, condition: Condition) -> Latents:
        """The network's prediction (eps or v) at `x`; `t` is in the network's own units."""
        tokens, conditioning = self.embed(x), self.condition(t, condition)
        tokens = self.run_blocks(tokens, conditioning, attend_self)
        return self.unpatchify(self.final_layer(tokens, vector_of(conditioning)))

    @final
    def run_blocks(self, tokens: Tokens, conditioning: Conditioning, attend: Attend) -> Tokens:
        """All blocks, lowest first; `attend` decides what each block's self-attention reads."""
        for index, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens, conditioning, attend, index)
        return tokens


class Transformer(Backbone):
    """DiT, or PixArt's where the configuration has a text."""

    pos_embed: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = nn.Linear(config.channels * config.patch_size**2, config.width)
        self.t_embedder = TimestepEmbedder(config.width, frequency_shift=config.frequency_shift)
        self.y_embedder = _new_embedder(config)
        positions = sincos_positions(config.width, config.grid, scale=config.position_scale)
        self.register_buffer("pos_embed", positions, persistent=False)
        self.blocks = nn.ModuleList(_new_block(config) for _ in range(config.depth))
        self.final_layer = self.make_final_layer()

    def make_final_layer(self) -> FinalLayer | TextFinalLayer:
        """A new output head of the right shape."""
        channels = self.config.channels * (2 if self.config.learn_sigma else 1)
        kind = FinalLayer if self.config.text is None else TextFinalLayer
        return kind(self.config.width, channels * self.config.patch_size**2)

    def embed(self, x: Latents) -> Tokens:
        """Patches to tokens, with their positions."""
        return self.x_embedder(self.patchify(x)) + self.pos_embed

    def patchify(self, x: Latents) -> Patches:
        """The values of each patch, channel by channel and row by row."""
        patch, grid = self.config.patch_size, self.config.grid
        x = x.unflatten(3, (grid, patch)).unflatten(2, (grid, patch))  # row c gh ph gw pw
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def condition(self, t: RowTimes, condition: Condition) -> Conditioning:
        """What the blocks read: for a class one vector per row, its time plus its class.

        `len(t) / len(condition)` successive rows have the same condition, such as the steps of a trajectory.
        """
        time: Vector = self.t_embedder(t)
        if isinstance(condition, Prompts):
            conditioning: TextConditioning = self.y_embedder(time, condition)
            return conditioning
        vector: Vector = time + self.y_embedder(condition.repeat_interleave(len(t) // len(condition)))
        return vector

    def unpatchify(self, values: Patches) -> Latents:
        """Patch values to a latent; learned-sigma channels are dropped."""
        patch, grid = self.config.patch_size, self.config.grid
        x = values.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))  # row gh gw ph pw c
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[:, : self.config.channels]


def condition_name(network: TransformerConfig) -> str:
    """What a network is conditional on, in words."""
    if network.text:
        return f"text of width {network.text.width}"
    return f"{network.num_classes} classes" + ("" if network.null_class else " without one for none")


def vector_of(conditioning: Conditioning) -> Vector:
    """The one vector per row: the time plus the class, or the time."""
    return conditioning.vector if isinstance(conditioning, TextConditioning) else conditioning


def _new_embedder(config: TransformerConfig) -> LabelEmbedder | TextEmbedder:
    if config.text is None:
        return LabelEmbedder(config.num_classes, config.width, null_class=config.null_class)
    return TextEmbedder(config.text.width, config.width, picture_size=config.text.picture_size)


def _new_block(config: TransformerConfig) -> Block | TextBlock:
    if config.text is None:
        return Block(config.width, config.num_heads, config.mlp_ratio, mlp_norm_eps=config.mlp_norm_eps)
    return TextBlock(config.width, config.num_heads, config.mlp_ratio)


def initialise(network: Transformer, generator: torch.Generator) -> Transformer:
    """DiT's initial weights: Xavier linears, normal embedders, and zero modulations and output (adaLN-Zero).

    For class-conditional networks; one that reads text is imported.
    """
    assert isinstance(network.y_embedder, LabelEmbedder)  # noqa: S101 see above
    normal = partial(init.normal_, std=0.02, generator=generator)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            if "adaLN_modulation" in name or name == "final_layer.linear":
                init.zeros_(module.weight)
            elif name.startswith("t_embedder"):
                draw(module.weight, normal)
            else:
                draw(module.weight, partial(init.xavier_uniform_, generator=generator))
            init.zeros_(module.bias)
    draw(network.y_embedder.embedding_table.weight, normal)
    return network
