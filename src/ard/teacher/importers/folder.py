"""Folders that diffusers saved: a DiT or PixArt pipeline, or its transformer alone. Read without diffusers.

The pipelines guide all latent channels.
"""

import os
from pathlib import Path
from typing import Any

from ard.core.errors import InputError
from ard.core.file_kinds import weight_files
from ard.core.files import read_json
from ard.core.model_folder import StateDict, require_finite
from ard.networks.transformer import TransformerConfig
from ard.teacher.importers import dit_folder, pixart_folder
from ard.teacher.importers.adapter import FILES, merged_with, refuse_adapters
from ard.teacher.importers.checkpoint import is_published
from ard.teacher.importers.class_names import names_by_label
from ard.teacher.importers.scheduler import DITS_OWN, read_scheduler
from ard.teacher.importers.settings import require
from ard.teacher.importers.tensors import SCALING_FACTOR, Brought, Published, read_tensors
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard
from ard.text.encoder import MAX_TOKENS

PIPELINES = ("DiTPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline")
PIXELS_PER_LATENT = 8  # Of Stable Diffusion's autoencoders.
MODELS = ("transformer_ema", "transformer")  # Where a training's checkpoint folder has its network, averaged first.


def read_folder(folder: Path, lora: Path | None = None) -> Published:
    """The teacher in a folder, an adapter merged; InputError when it is no DiT or PixArt, or not all of one."""
    index = _pipeline(folder)
    transformer, notes = _model_folder(folder, index)
    vae = folder / "vae" if index is not None and (folder / "vae").is_dir() else None
    network, weights, dropped, told = _transformer(transformer, vae, lora)
    schedule = read_scheduler(folder / "scheduler" / "scheduler_config.json") if index is not None else DITS_OWN
    imported = Imported(
        format=SourceFormat.DIFFUSERS,
        source=folder.resolve().name,
        cfg_channels=-1,
        dropped=dropped,
        scaling_factor=_scaling_factor(vae, network),
        vae=None if vae is None else os.fspath(vae.resolve()),
        class_names=names_by_label(index or {}, network.num_classes)
        or names_by_label(read_json(transformer / "config.json"), network.num_classes),
        shift_factor=_shift_factor(vae),
        max_tokens=MAX_TOKENS.get(str((index or {}).get("_class_name"))),
        notes=(*notes, *told, *schedule.notes),
    )
    return Published(TeacherCard(network=network, diffusion=schedule.diffusion, imported=imported), weights)


def find_transformer(folder: Path) -> Path:
    """The folder of the network in the one of a pipeline, of a training's checkpoint, or of itself."""
    return _model_folder(folder, _pipeline(folder))[0]


def _model_folder(folder: Path, index: dict[str, Any] | None) -> tuple[Path, list[str]]:
    """Where the network's own folder is, and what people are told of the choice."""
    if index is not None:
        return folder / "transformer", []
    if (folder / "config.json").is_file():
        return folder, []
    found = [name for name in MODELS if (folder / name / "config.json").is_file()]
    if found and not (folder / "scheduler").is_dir():  # A pipeline without its index is not whole.
        averaged = "the averaged weights in " if found[0] == MODELS[0] else ""
        return folder / found[0], [f"network: {averaged}{found[0]}" + (f", not {found[1]}" if found[1:] else "")]
    if any((folder / name).is_file() for name in FILES):
        raise InputError(f"{folder} is a LoRA adapter, no network; name the network, and the adapter with --lora")
    if inside := sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir()):
        raise InputError(f"{folder} holds a training's checkpoints ({', '.join(inside[-5:])}); name one of them")
    raise InputError(f"{folder} has no model_index.json and no config.json; a folder that diffusers saved is expected")


def _transformer(folder: Path, vae: Path | None, lora: Path | None) -> Brought:
    """The network in the folder of a transformer, a DiT or a PixArt."""
    path = folder / "config.json"
    config, known = read_json(path), dict.fromkeys((*dit_folder.CLASSES, *pixart_folder.CLASSES))
    name = config.get("_class_name")
    require(f"{path}: _class_name", name, tuple(known))
    is_pixart = name not in dit_folder.CLASSES or (
        name in pixart_folder.CLASSES and config.get("norm_type") == pixart_folder.NORM
    )
    weights, notes = _read_all(folder)
    refuse_adapters(weights, folder)
    weights, merged = merged_with(lora, weights, folder)
    if is_pixart:
        brought = pixart_folder.read_pixart(folder, weights, pixels_per_latent=_pixels_per_latent(vae))
    else:
        brought = dit_folder.read_dit(folder, weights)
    return brought._replace(notes=(*notes, *merged, *brought.notes))


def _pipeline(folder: Path) -> dict[str, Any] | None:
    """A pipeline's model_index.json; None for the folder of a transformer alone."""
    path = folder / "model_index.json"
    if path.is_file():
        index = read_json(path)
        require(f"{path}: _class_name", index.get("_class_name"), PIPELINES)
        return index
    return None


def _read_all(folder: Path) -> tuple[StateDict, list[str]]:
    """All tensors of a model's folder, whether in one file or in several, and what people are told of the choice."""
    files = weight_files(folder)
    weights = {name: tensor for path in files.paths for name, tensor in read_tensors(path).items()}
    require_finite(weights, folder)
    return weights, [f"weights: the variant {files.variant}, computed with in float32"] if files.variant else []


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
    """The pipeline's own autoencoder's, else Stable Diffusion's for a network such as was published.

    The transformers of PixArt-alpha and -Sigma, whose autoencoders differ, do not tell which of both they are.
    """
    if vae is None:
        return SCALING_FACTOR if is_published(network) else None
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
