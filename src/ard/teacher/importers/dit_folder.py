"""diffusers' DiTTransformer2DModel as our network.

It is not quite DiT: the time's sinusoids have other frequencies, the LayerNorm before each MLP has another epsilon, and
every block holds a copy of the embedders.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.core.model_folder import StateDict
from ard.networks.transformer import TransformerConfig
from ard.teacher.importers.settings import read_settings, require
from ard.teacher.importers.tensors import Brought, check_positions, our_names, renamed

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # The second is what it was called at first.
EMBEDDERS = "transformer_blocks.0.norm1.emb"
OUTSIDE = {
    "x_embedder": ("pos_embed.proj",),
    "t_embedder.mlp.0": (f"{EMBEDDERS}.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": (f"{EMBEDDERS}.timestep_embedder.linear_2",),
    "y_embedder.embedding_table": (f"{EMBEDDERS}.class_embedder.embedding_table",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
IN_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}


def read_dit(folder: Path, tensors: StateDict) -> Brought:
    """The network in the folder of a transformer, whose tensors are given; InputError when it is no DiT."""
    network = _network(read_settings(_Transformer, folder / "config.json", CLASSES))
    if (positions := tensors.pop("pos_embed.pos_embed", None)) is not None:
        check_positions(positions, network, folder)
    tensors = _with_one_embedder(tensors, folder)
    weights = renamed(tensors, {name: _sources(name) for name in our_names(network)}, network, folder)
    return Brought(network, weights, ())


@dataclass(frozen=True, kw_only=True)
class _Transformer:
    """What is read of a transformer's config.json, with diffusers' defaults."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    sample_size: int = 32
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-5
    norm_type: str = "ada_norm_zero"
    activation_fn: str = "gelu-approximate"
    attention_bias: bool = True
    norm_elementwise_affine: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no DiT."""
        out_channels = (None, self.in_channels, 2 * self.in_channels)
        require("out_channels", self.out_channels, out_channels)
        require("norm_type", self.norm_type, ("ada_norm_zero",))
        require("activation_fn", self.activation_fn, ("gelu-approximate",))
        require("attention_bias", self.attention_bias, (True,))
        require("norm_elementwise_affine", self.norm_elementwise_affine, (False,))


def _network(config: _Transformer) -> TransformerConfig:
    return TransformerConfig(
        width=config.num_attention_heads * config.attention_head_dim,
        depth=config.num_layers,
        num_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        latent_size=config.sample_size,
        channels=config.in_channels,
        num_classes=config.num_embeds_ada_norm,
        learn_sigma=config.out_channels == 2 * config.in_channels,
        frequency_shift=1,
        mlp_norm_eps=config.norm_eps,
    )


def _with_one_embedder(tensors: StateDict, where: Path) -> StateDict:
    """Without the copies of the embedders in the blocks above the lowest; InputError when one of them differs."""
    kept = {}
    for name, tensor in tensors.items():
        first = re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", f"{EMBEDDERS}.", name)
        if first == name:
            kept[name] = tensor
        elif first in tensors and not torch.equal(tensor, tensors[first]):
            raise InputError(
                f"{where}: {name} differs from block 0's: it was trained in diffusers, where every block learns "
                "its own embedders of time and class, and only networks with one for all are read"
            )
    return kept


def _sources(ours: str) -> tuple[str, ...]:
    """The names in diffusers of what makes up our tensor."""
    stem, _, kind = ours.rpartition(".")
    if not (block := re.match(r"blocks\.(\d+)\.(.*)", stem)):
        return tuple(f"{name}.{kind}" for name in OUTSIDE[stem])
    return tuple(f"transformer_blocks.{block[1]}.{name}.{kind}" for name in IN_BLOCK[block[2]])
