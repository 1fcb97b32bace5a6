"""What a feature network is: uint8 pictures in, named features out, and the facts that make its numbers checkable."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from ard.images.pictures import Pixels

FloatImages = Float[Tensor, "batch 3 height width"]
FeatureRows = Float[Tensor, "_sample _feature"]  # Of one of several sets or networks, whose sizes differ.


class Feature(StrEnum):
    """What distances are measured on."""

    POOL3 = "pool3"  # Inception: 2048 values, for FID, precision and recall, KID.
    SPATIAL = "spatial"  # Inception: 17 x 17 x 7 values, for sFID.
    PROBABILITIES = "probabilities"  # Inception: 1008 classes, for the Inception score.
    DINOV2 = "dinov2"  # The class token of DINOv2, for FD-DINOv2.
    CLIP = "clip"  # CLIP's projected and normalised embedding, for CMMD.


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A loaded network as a function of pixels. Its features are float32 and on the CPU."""

    name: str
    features: tuple[Feature, ...]
    extract: Callable[[Pixels], dict[Feature, FeatureRows]]
    facts: dict[str, Any]
    """Weights, their SHA-256, resize, precision: what a second evaluator must share to get the same numbers."""
    notes: tuple[str, ...] = ()
    """Why its numbers may not compare with published ones."""


def channels_first(pixels: Tensor, device: torch.device) -> UInt8[Tensor, "batch 3 height width"]:
    """The order that PyTorch's networks take. TypeError unless the pixels are uint8 RGB with channels last."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise TypeError(f"uint8 pixels (image, height, width, 3) are needed, not {pixels.dtype} {tuple(pixels.shape)}")
    return pixels.to(device).permute(0, 3, 1, 2)


def bicubic(images: FloatImages, size: int) -> Float[Tensor, "batch 3 side side"]:
    """Square images by Keys' cubic kernel (a = -0.5), widened when shrinking, as PIL and JAX resize; not rounded."""
    return interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def normalise(images: FloatImages, mean: tuple[float, ...], std: tuple[float, ...]) -> FloatImages:
    """(images / 255 - mean) / std, channel by channel."""
    centre, scale = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (mean, std))
    return (images / 255 - centre) / scale


@contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32 inside: TF32 keeps 10 bits of the factors, which moves features and with them every distance."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
