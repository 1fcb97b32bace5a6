"""Folders that diffusers saved: a DiTPipeline, or its DiTTransformer2DModel alone. Read without diffusers.

diffusers' DiT is not quite DiT: the time's sinusoids have other frequencies, the LayerNorm before each MLP has another
epsilon, every block holds a copy of the embedders, and its pipeline guides all latent channels.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from ard.config import from_plain, to_plain
from ard.diffusion import Diffusion, DiffusionKind, TimeSpacing
from ard.errors import InputError
from ard.files import read_json
from ard.models.transformer import TransformerConfig
from ard.models.weights import StateDict
from ard.published.tensors import (
    SCALING_FACTOR,
    Published,
    check_positions,
    our_names,
    read_tensors,
    renamed,
)
from ard.teacher import Imported, SourceFormat, TeacherCard

STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin")
TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # The second is what it was called at first.
SPACINGS = {  # How a scheduler spaces its times when its file does not say.
    "DDIMScheduler": TimeSpacing.LEADING,
    "DDPMScheduler": TimeSpacing.LEADING,
    "DPMSolverMultistepScheduler": TimeSpacing.LINSPACE,
}
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

Config = TypeVar("Config")


def read_folder(folder: Path) -> Published:
    """The teacher in a folder; InputError when it is no DiT of diffusers, or not all of one."""
    index = _pipeline(folder)
    transformer = folder if index is None else folder / "transformer"
    config = _read_config(_Transformer, transformer / "config.json", TRANSFORMERS)
    network = _network(config)
    tensors = _read_all(transformer)
    if (positions := tensors.pop("pos_embed.pos_embed", None)) is not None:
        check_positions(positions, network, transformer)
    tensors = _with_one_embedder(tensors, transformer)
    weights = renamed(tensors, {name: _sources(name) for name in our_names(network)}, network, transformer)
    vae = folder / "vae" if index is not None and (folder / "vae").is_dir() else None
    imported = Imported(
        format=SourceFormat.DIFFUSERS,
        source=folder.resolve().name,
        cfg_channels=-1,
        dropped=(),
        scaling_factor=_scaling_factor(vae, network.channels),
        vae=None if vae is None else os.fspath(vae.resolve()),
        class_names=_class_names(index or {}, network.num_classes),
    )
    return Published(TeacherCard(network=network, diffusion=_diffusion(folder, index), imported=imported), weights)


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
        _require("out_channels", self.out_channels, out_channels)
        _require("norm_type", self.norm_type, ("ada_norm_zero",))
        _require("activation_fn", self.activation_fn, ("gelu-approximate",))
        _require("attention_bias", self.attention_bias, (True,))
        _require("norm_elementwise_affine", self.norm_elementwise_affine, (False,))


@dataclass(frozen=True, kw_only=True)
class _Scheduler:
    """What is read of a scheduler's scheduler_config.json, with diffusers' defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: TimeSpacing | None = None
    steps_offset: int = 0
    clip_sample: bool = False
    thresholding: bool = False
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse what DiT's ODE is not."""
        _require("beta_schedule", self.beta_schedule, ("linear",))
        _require("prediction_type", self.prediction_type, ("epsilon",))
        _require("steps_offset", self.steps_offset, (0,))
        _require("clip_sample", self.clip_sample, (False,))
        _require("thresholding", self.thresholding, (False,))
        _require("set_alpha_to_one", self.set_alpha_to_one, (True,))
        _require("rescale_betas_zero_snr", self.rescale_betas_zero_snr, (False,))


def _require(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value}; allowed: {', '.join(map(str, allowed))}")


def _pipeline(folder: Path) -> dict[str, Any] | None:
    """A pipeline's model_index.json; None for the folder of a transformer alone."""
    path = folder / "model_index.json"
    if path.is_file():
        index = read_json(path)
        _require(f"{path}: _class_name", index.get("_class_name"), ("DiTPipeline",))
        return index
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no model_index.json and no config.json; a folder that diffusers saved is expected"
        )
    return None


def _read_config(cls: type[Config], path: Path, class_names: tuple[str, ...]) -> Config:
    """The fields of `cls` in a JSON file of diffusers; InputError for another class and for what is not supported."""
    plain = read_json(path)
    _require(f"{path}: _class_name", plain.get("_class_name"), class_names)
    known = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    given = {name: plain[name] for name in known if name in plain}
    return from_plain(cls, {**to_plain(cls()), **given}, where=str(path))


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


def _diffusion(folder: Path, index: Mapping[str, Any] | None) -> Diffusion:
    """The scheduler's noise process and spacing; DiT's own for a transformer alone."""
    if index is None:
        return Diffusion(kind=DiffusionKind.VP)
    path = folder / "scheduler" / "scheduler_config.json"
    plain = read_json(path)
    config = _read_config(_Scheduler, path, tuple(SPACINGS))
    _require(f"{path}: trained_betas", plain.get("trained_betas"), (None,))
    return Diffusion(
        kind=DiffusionKind.VP,
        num_train_steps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        spacing=config.timestep_spacing or SPACINGS[plain["_class_name"]],
    )


def _read_all(folder: Path) -> StateDict:
    """All tensors of a model's folder, whether in one file or in several."""
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        parts = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        parts = [name for name in WEIGHTS if (folder / name).is_file()][:1]
    if not parts:
        raise InputError(f"{folder} has no weights; allowed: {', '.join(WEIGHTS)}")
    return {name: tensor for part in parts for name, tensor in read_tensors(folder / part).tensors.items()}


def _with_one_embedder(tensors: StateDict, where: Path) -> StateDict:
    """Without the copies of the embedders in the blocks above the lowest; InputError when one of them differs."""
    kept = {}
    for name, tensor in tensors.items():
        first = re.sub(r"^transformer_blocks\.\d+\.norm1\.emb\.", f"{EMBEDDERS}.", name)
        if first == name:
            kept[name] = tensor
        elif first in tensors and not torch.equal(tensor, tensors[first]):
            raise InputError(f"{where}: {name} differs from block 0's; embedders per block are not supported")
    return kept


def _sources(ours: str) -> tuple[str, ...]:
    """The names in diffusers of what makes up our tensor."""
    stem, _, kind = ours.rpartition(".")
    if not (block := re.match(r"blocks\.(\d+)\.(.*)", stem)):
        return tuple(f"{name}.{kind}" for name in OUTSIDE[stem])
    return tuple(f"transformer_blocks.{block[1]}.{name}.{kind}" for name in IN_BLOCK[block[2]])


def _scaling_factor(vae: Path | None, channels: int) -> float | None:
    """The pipeline's own autoencoder's, else Stable Diffusion's for four channels."""
    if vae is None:
        return SCALING_FACTOR if channels == 4 else None
    path = vae / "config.json"
    scale = read_json(path).get("scaling_factor") or SCALING_FACTOR
    if not isinstance(scale, int | float):
        raise InputError(f"{path}: scaling_factor is {scale!r}; a number is expected")
    return float(scale)


def _class_names(index: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The pipeline's id2label by label, "" for one that it leaves out; empty without a map."""
    names = index.get("id2label")
    return tuple(str(names.get(str(label), "")) for label in range(num_classes)) if isinstance(names, dict) else ()
