"""DINOv2's class token, for FD-DINOv2 (Stein et al., 2023) as EDM2 computes it."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ard.core.errors import InputError
from ard.core.huggingface import load_pretrained, pretrained_facts
from ard.evaluation.features.network import (
    Feature,
    FeatureNetwork,
    FeatureRows,
    bicubic,
    channels_first,
    normalise,
    without_tf32,
)
from ard.images.pictures import Pixels

SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED_WIDTH = 1024  # ViT-L/14, facebook/dinov2-large, on which FD-DINOv2 is defined.


def load_dinov2(folder: Path, device: torch.device) -> FeatureNetwork:
    """The network in a local folder such as that of facebook/dinov2-large."""
    model = load_pretrained(
        folder,
        choose=lambda package: package.Dinov2Model,
        kinds=("dinov2",),
        option="--dinov2",
        extra="eval",
        device=device,
    )
    grid = SIZE // _patch_size(model, folder)
    model.embeddings.position_embeddings = nn.Parameter(
        resample_positions(model.embeddings.position_embeddings, grid), requires_grad=False
    )

    @torch.no_grad()
    def extract(pixels: Pixels) -> dict[Feature, FeatureRows]:
        images = bicubic(channels_first(pixels, device).float(), SIZE)
        with without_tf32():
            output = model(pixel_values=normalise(images, IMAGENET_MEAN, IMAGENET_STD))
        return {Feature.DINOV2: output.last_hidden_state[:, 0].cpu()}  # The class token after the last norm.

    facts = pretrained_facts(
        model, folder, resize="224, bicubic with antialiasing, not rounded, as EDM2 (dgm-eval rounds to 8 bits)"
    )
    published = model.config.hidden_size == PUBLISHED_WIDTH
    notes = () if published else (f"FD-DINOv2 is published on ViT-L/14; {folder} is {facts['network']}",)
    return FeatureNetwork(name="dinov2", features=(Feature.DINOV2,), extract=extract, facts=facts, notes=notes)


def resample_positions(positions: Float[Tensor, "1 stored width"], grid: int) -> Float[Tensor, "1 resampled width"]:
    """Position embeddings for grid x grid patches, the class token's in front.

    facebookresearch/dinov2 resamples by the factor (grid + 0.1) / stored grid, not to a size, and its features are
    what FD-DINOv2 is published on. transformers resamples to a size, which gives other features.
    """
    stored = round((positions.shape[1] - 1) ** 0.5)
    if stored == grid:
        return positions
    square = positions[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2)  # 1 width stored stored
    square = interpolate(square, scale_factor=(grid + 0.1) / stored, mode="bicubic")
    return torch.cat([positions[:, :1], square.flatten(2).transpose(1, 2)], dim=1)


def _patch_size(model: Any, folder: Path) -> int:
    patch: int = model.config.patch_size
    if not isinstance(patch, int) or SIZE % patch:
        raise InputError(f"{folder} has patches of {patch}; --dinov2 takes a network whose patches divide {SIZE}")
    return patch
