"""Folders that diffusers saved: a DiT or PixArt pipeline, or its transformer alone. Read without diffusers.

The pipelines guide all latent channels.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.diffusion import Diffusion, DiffusionKind, TimeSpacing
from ard.errors import InputError
from ard.files import read_json
from ard.models.text_encoder import MAX_TOKENS
from ard.models.transformer import TransformerConfig
from ard.models.weights import StateDict
from ard.published import dit_folder, pixart_folder
from ard.published.settings import read_settings, require
from ard.published.tensors import SCALING_FACTOR, Brought, Published, read_tensors
from ard.teacher import Imported, SourceFormat, TeacherCard

STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin")
PIPELINES = ("DiTPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")
PIXELS_PER_LATENT = 8  # Of Stable Diffusion's autoencoders.
SPACINGS = {  # How a scheduler spaces its times when its file does not say.
    "DDIMScheduler": TimeSpacing.LEADING,
    "DDPMScheduler": TimeSpacing.LEADING,
    "DPMSolverMultistepScheduler": TimeSpacing.LINSPACE,
}


def read_folder(folder: Path) -> Published:
    """The teacher in a folder; InputError when it is no DiT or PixArt of diffusers, or not all of one."""
    index = _pipeline(folder)
    transformer = folder if index is None else folder / "transformer"
    vae = folder / "vae" if index is not None and (folder / "vae").is_dir() else None
    network, weights, dropped = _transformer(transformer, vae)
    imported = Imported(
        format=SourceFormat.DIFFUSERS,
        source=folder.resolve().name,
        cfg_channels=-1,
        dropped=dropped,
        scaling_factor=_scaling_factor(vae, network),
        vae=None if vae is None else os.fspath(vae.resolve()),
        class_names=_class_names(index or {}, network.num_classes),
        shift_factor=_shift_factor(vae),
        max_tokens=MAX_TOKENS.get(str((index or {}).get("_class_name"))),
    )
    return Published(TeacherCard(network=network, diffusion=_diffusion(folder, index), imported=imported), weights)


def _transformer(folder: Path, vae: Path | None) -> Brought:
    """The network in the folder of a transformer, a DiT or a PixArt."""
    path = folder / "config.json"
    config, known = read_json(path), dict.fromkeys((*dit_folder.CLASSES, *pixart_folder.CLASSES))
    name = config.get("_class_name")
    require(f"{path}: _class_name", name, tuple(known))
    if name not in dit_folder.CLASSES or (
        name in pixart_folder.CLASSES and config.get("norm_type") == pixart_folder.NORM
    ):
        return pixart_folder.read_pixart(folder, _read_all(folder), pixels_per_latent=_pixels_per_latent(vae))
    return dit_folder.read_dit(folder, _read_all(folder))


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
        require("beta_schedule", self.beta_schedule, ("linear",))
        require("prediction_type", self.prediction_type, ("epsilon",))
        require("steps_offset", self.steps_offset, (0,))
        require("clip_sample", self.clip_sample, (False,))
        require("thresholding", self.thresholding, (False,))
        require("set_alpha_to_one", self.set_alpha_to_one, (True,))
        require("rescale_betas_zero_snr", self.rescale_betas_zero_snr, (False,))


def _pipeline(folder: Path) -> dict[str, Any] | None:
    """A pipeline's model_index.json; None for the folder of a transformer alone."""
    path = folder / "model_index.json"
    if path.is_file():
        index = read_json(path)
        require(f"{path}: _class_name", index.get("_class_name"), PIPELINES)
        return index
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no model_index.json and no config.json; a folder that diffusers saved is expected"
        )
    return None


def _diffusion(folder: Path, index: Mapping[str, Any] | None) -> Diffusion:
    """The scheduler's noise process and spacing; DiT's own for a transformer alone."""
    if index is None:
        return Diffusion(kind=DiffusionKind.VP)
    path = folder / "scheduler" / "scheduler_config.json"
    plain = read_json(path)
    config = read_settings(_Scheduler, path, tuple(SPACINGS))
    require(f"{path}: trained_betas", plain.get("trained_betas"), (None,))
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


def _pixels_per_latent(vae: Path | None) -> int:
    """How many pixels along a side the pipeline's autoencoder makes of a latent."""
    if vae is None:
        return PIXELS_PER_LATENT
    path = vae / "config.json"
    levels = read_json(path).get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise InputError(f"{path}: block_out_channels is {levels!r}; a list of numbers is expected")
    return 2 ** (len(levels) - 1)


def _scaling_factor(vae: Path | None, network: TransformerConfig) -> float | None:
    """The pipeline's own autoencoder's, else Stable Diffusion's for a DiT of four channels.

    The transformers of PixArt-alpha and -Sigma, whose autoencoders differ, do not tell which of both they are.
    """
    if vae is None:
        return SCALING_FACTOR if network.channels == 4 and network.text is None else None
    path = vae / "config.json"
    scale = read_json(path).get("scaling_factor") or SCALING_FACTOR
    if not isinstance(scale, int | float):
        raise InputError(f"{path}: scaling_factor is {scale!r}; a number is expected")
    return float(scale)


def _shift_factor(vae: Path | None) -> float | None:
    """The pipeline's own autoencoder's; None where it has none, as Stable Diffusion's have not."""
    if vae is None:
        return None
    path = vae / "config.json"
    shift = read_json(path).get("shift_factor") or None
    if not isinstance(shift, float | int | None):
        raise InputError(f"{path}: shift_factor is {shift!r}; a number is expected")
    return None if shift is None else float(shift)


def _class_names(index: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """The pipeline's id2label by label, "" for one that it leaves out; empty without a map."""
    names = index.get("id2label")
    return tuple(str(names.get(str(label), "")) for label in range(num_classes)) if isinstance(names, dict) else ()
