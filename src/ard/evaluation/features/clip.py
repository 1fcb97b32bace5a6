"""CLIP's image embedding, for CMMD (Jayasumana et al., 2024)."""

from pathlib import Path

import torch

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

SIZE = 336
PUBLISHED_WIDTH = 1024  # ViT-L/14.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_clip(folder: Path, device: torch.device) -> FeatureNetwork:
    """The network in a local folder such as that of openai/clip-vit-large-patch14-336."""
    model = load_pretrained(
        folder,
        choose=lambda package: package.CLIPVisionModelWithProjection,
        kinds=("clip", "clip_vision_model"),
        option="--clip",
        extra="eval",
        device=device,
    )
    if model.config.image_size != SIZE:
        raise InputError(
            f"{folder} takes images of {model.config.image_size} pixels; CMMD is defined on ViT-L/14 at {SIZE}, "
            "openai/clip-vit-large-patch14-336"
        )

    @torch.no_grad()
    def extract(pixels: Pixels) -> dict[Feature, FeatureRows]:
        images = bicubic(channels_first(pixels, device).float(), SIZE)
        with without_tf32():
            embedding = model(pixel_values=normalise(images, CLIP_MEAN, CLIP_STD)).image_embeds
        # google-research/cmmd divides by the length before it compares.
        return {Feature.CLIP: (embedding / embedding.norm(dim=1, keepdim=True)).cpu()}

    facts = pretrained_facts(model, folder, resize="336, bicubic with antialiasing, not rounded")
    published = model.config.hidden_size == PUBLISHED_WIDTH
    notes = () if published else (f"CMMD is published on ViT-L/14; {folder} is {facts['network']}",)
    return FeatureNetwork(name="clip", features=(Feature.CLIP,), extract=extract, facts=facts, notes=notes)
