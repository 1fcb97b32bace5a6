"""PixArt's own checkpoints (Chen et al., 2023 and 2024): the network of the .pth files, before diffusers."""

import re
from dataclasses import replace

from ard.core.errors import InputError
from ard.core.model_folder import StateDict
from ard.networks.transformer import TextConfig, TransformerConfig
from ard.teacher.importers.shapes import Told, depth_of, heads_of, latent_size_of, learns_sigma
from ard.teacher.importers.tensors import Brought, are_positions, our_names, renamed, shape_of
from ard.teacher.teacher import SourceFormat

UNUSED = "y_embedder.y_embedding"  # What training drops a caption for; the pipelines encode "" instead.
SIZES = "csize_embedder.mlp.0.weight"  # There where the network is told the picture's size.
PIXELS_PER_LATENT = 8
POSITION_SCALES = (1.0, 0.5, 2.0, 4.0)
OURS = (  # The beginnings of our names that differ from PixArt's, and PixArt's.
    ("x_embedder.", "x_embedder.proj."),
    ("y_embedder.adaLN_single.", "t_block."),
    ("y_embedder.size.resolution.", "csize_embedder."),
    ("y_embedder.size.aspect_ratio.", "ar_embedder."),
    ("y_embedder.", "y_embedder.y_proj."),
)
IN_BLOCK = {"cross_attn.q": "cross_attn.q_linear", "cross_attn.kv": "cross_attn.kv_linear"}


def read_pixart_tensors(tensors: StateDict, told: Told, _: SourceFormat) -> Brought:
    """The network in PixArt's own tensors; InputError when it is another."""
    dropped = tuple(name for name in (UNUSED,) if tensors.pop(name, None) is not None)
    positions = tensors.get("pos_embed")
    network, notes = _network(tensors, told)
    if positions is not None:
        del tensors["pos_embed"]
        scales = [one for one in POSITION_SCALES if are_positions(positions, _with_scale(network, one))]
        if not scales:
            raise InputError(f"{told.where}: pos_embed is none of PixArt's tables of {network.grid} x {network.grid}")
        network = _with_scale(network, scales[0])
    weights = renamed(tensors, {name: (_source(name),) for name in our_names(network)}, network, told.where)
    return Brought(network, weights, dropped, tuple(notes))


def _network(tensors: StateDict, told: Told) -> tuple[TransformerConfig, list[str]]:
    width, channels, patch_size, _ = shape_of(tensors, "x_embedder.proj.weight", 4, told.where)
    _, text_width = shape_of(tensors, "y_embedder.y_proj.fc1.weight", 2, told.where)
    hidden, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2, told.where)
    out_features, _ = shape_of(tensors, "final_layer.linear.weight", 2, told.where)
    heads, note = heads_of(width, depth_of(tensors), told)
    size = latent_size_of(tensors, patch_size, told)
    network = TransformerConfig(
        width=width,
        depth=depth_of(tensors),
        num_heads=heads,
        patch_size=patch_size,
        latent_size=size,
        channels=channels,
        num_classes=0,
        mlp_ratio=hidden / width,
        learn_sigma=learns_sigma(out_features, channels * patch_size**2, told.where),
        text=TextConfig(width=text_width, picture_size=size * PIXELS_PER_LATENT if SIZES in tensors else None),
        position_scale=float(max(size // 64, 1)),
    )
    return network, [note] if note else []


def _with_scale(network: TransformerConfig, scale: float) -> TransformerConfig:
    return replace(network, position_scale=scale)


def _source(ours: str) -> str:
    """PixArt's name of our tensor."""
    if block := re.fullmatch(r"(blocks\.\d+)\.(cross_attn\.(?:q|kv))\.(\w+)", ours):
        return f"{block[1]}.{IN_BLOCK[block[2]]}.{block[3]}"
    for mine, theirs in OURS:
        if ours.startswith(mine):
            return theirs + ours.removeprefix(mine)
    return ours
