"""diffusers' PixArtTransformer2DModel, PixArt-alpha and -Sigma (Chen et al., 2023 and 2024), as our network."""

import re
from dataclasses import dataclass
from pathlib import Path

from ard.core.errors import InputError
from ard.core.model_folder import StateDict
from ard.networks.transformer import TextConfig, TransformerConfig
from ard.teacher.importers.settings import read_settings, require
from ard.teacher.importers.tensors import Brought, check_positions, our_names, renamed

CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")  # The second is what it was called at first.
NORM = "ada_norm_single"
UNUSED = "caption_projection.y_embedding"  # What training drops a caption for; the pipelines encode "" instead.
OUTSIDE = {
    "x_embedder": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "y_embedder.fc1": ("caption_projection.linear_1",),
    "y_embedder.fc2": ("caption_projection.linear_2",),
    "y_embedder.adaLN_single.1": ("adaln_single.linear",),
    "y_embedder.size.resolution.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "y_embedder.size.resolution.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "y_embedder.size.aspect_ratio.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "y_embedder.size.aspect_ratio.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
IN_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q": ("attn2.to_q",),
    "cross_attn.kv": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}


def read_pixart(folder: Path, tensors: StateDict, *, pixels_per_latent: int) -> Brought:
    """The network in the folder of a transformer, whose tensors are given; InputError when it is no PixArt."""
    path = folder / "config.json"
    config = read_settings(_Transformer, path, CLASSES)
    if config.caption_channels is None:
        raise InputError(f"{path}: caption_channels is None; the width of the text encoder is expected, such as 4096")
    network = _network(config, config.caption_channels, pixels_per_latent)
    if (positions := tensors.pop("pos_embed.pos_embed", None)) is not None:
        check_positions(positions, network, folder)
    dropped = tuple(name for name in (UNUSED,) if tensors.pop(name, None) is not None)
    weights = renamed(tensors, {name: _sources(name) for name in our_names(network)}, network, folder)
    return Brought(network, weights, dropped)


@dataclass(frozen=True, kw_only=True)
class _Transformer:
    """What is read of a transformer's config.json, with diffusers' defaults."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    cross_attention_dim: int | None = 1152
    sample_size: int = 128
    patch_size: int = 2
    caption_channels: int | None = None
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None
    norm_eps: float = 1e-6
    norm_type: str = NORM
    activation_fn: str = "gelu-approximate"
    attention_bias: bool = True
    norm_elementwise_affine: bool = False
    attention_type: str | None = "default"

    def __post_init__(self) -> None:
        """Refuse what is no PixArt."""
        require("out_channels", self.out_channels, (None, self.in_channels, 2 * self.in_channels))
        require("cross_attention_dim", self.cross_attention_dim, (self.width,))
        require("norm_eps", self.norm_eps, (1e-6,))
        require("norm_type", self.norm_type, (NORM,))
        require("activation_fn", self.activation_fn, ("gelu-approximate",))
        require("attention_bias", self.attention_bias, (True,))
        require("norm_elementwise_affine", self.norm_elementwise_affine, (False,))
        require("attention_type", self.attention_type, ("default",))

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def is_told_the_size(self) -> bool:
        """As diffusers guesses it for the files of before it had this field: 1024 pixels have it."""
        given = self.use_additional_conditions
        return self.sample_size == 128 if given is None else given

    @property
    def position_scale(self) -> float:
        """1 up to 512 pixels, 2 at 1024, unless the file says otherwise."""
        given = self.interpolation_scale
        return float(max(self.sample_size // 64, 1)) if given is None else given


def _network(config: _Transformer, text_width: int, pixels_per_latent: int) -> TransformerConfig:
    picture_size = config.sample_size * pixels_per_latent if config.is_told_the_size else None
    return TransformerConfig(
        width=config.width,
        depth=config.num_layers,
        num_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        latent_size=config.sample_size,
        channels=config.in_channels,
        num_classes=0,
        learn_sigma=config.out_channels == 2 * config.in_channels,
        text=TextConfig(width=text_width, picture_size=picture_size),
        position_scale=config.position_scale,
    )


def _sources(ours: str) -> tuple[str, ...]:
    """The names in diffusers of what makes up our tensor."""
    if ours == "final_layer.scale_shift_table":
        return ("scale_shift_table",)
    stem, _, kind = ours.rpartition(".")
    if not (block := re.match(r"blocks\.(\d+)\.?(.*)", stem)):
        return tuple(f"{name}.{kind}" for name in OUTSIDE[stem])
    if not block[2]:
        return (f"transformer_blocks.{block[1]}.{kind}",)  # scale_shift_table
    return tuple(f"transformer_blocks.{block[1]}.{name}.{kind}" for name in IN_BLOCK[block[2]])
