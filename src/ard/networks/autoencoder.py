"""A latent diffusion model's autoencoder (Rombach et al., 2022): latents to images and back, by diffusers."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.config import from_plain, later, to_plain
from ard.core.errors import InputError
from ard.core.extras import importing
from ard.core.file_kinds import DIFFUSERS_STEM, WeightFiles
from ard.core.files import read_json, sha256_of
from ard.core.model_folder import require_finite
from ard.core.offline import offline, quietly
from ard.core.pretrained_folder import component_folder, find_weights, first_line, telling
from ard.core.types import Latents

OPTION = "--vae"
PICTURE_CHANNELS = {1, 3}
MAX_LEVELS, MAX_CHANNELS, MAX_LAYERS = 16, 8192, 64  # Far beyond any published one, and built in no time.
# At most so many images are decoded together, and so many pixels: Stable Diffusion's decoder has 256 channels of each.
CHUNK = 8
CHUNK_PIXELS = CHUNK * 512**2
TILED_ABOVE = 1024  # An image with a side of more pixels is decoded in overlapping tiles.

_ONE_AT_A_TIME = Lock()  # The kernels' settings are the process's and tiling is the network's: threads take turns.

DecodedImages: TypeAlias = Float[Tensor, "batch colour image_height image_width"]


@dataclass(frozen=True, kw_only=True)
class LatentScale:
    """How an autoencoder's output becomes a latent: (encoded - shift_factor) scaling_factor."""

    scaling_factor: float
    shift_factor: float = later(0.0)

    def is_close_to(self, other: "LatentScale") -> bool:
        """Whether both are the same number for number, as far as files round them."""
        mine, others = (self.scaling_factor, self.shift_factor), (other.scaling_factor, other.shift_factor)
        return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(mine, others, strict=True))

    def __str__(self) -> str:
        shifted = f" after a shift by {self.shift_factor:g}" if self.shift_factor else ""
        return f"{self.scaling_factor:g}{shifted}"


@dataclass(frozen=True, kw_only=True)
class AutoencoderCard:
    """What an autoencoder's folder says of it; read without loading it."""

    folder: Path
    latent_channels: int
    image_channels: int
    downsampling: int
    """Pixels along a side for each latent."""
    scale: LatentScale
    picture_size: int | None
    """The side of the pictures that it was trained on; None where its file does not say."""
    weights: WeightFiles

    @property
    def sha256(self) -> str:
        """The SHA-256 of its weights."""
        return sha256_of(*self.weights.paths)


class LatentMoments(NamedTuple):
    """The normal distribution of scaled latents that the encoder gives for each image: mean + std noise is a draw."""

    mean: Latents
    std: Latents


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """A loaded autoencoder."""

    card: AutoencoderCard
    network: Any
    """Diffusers' own module, in float32 and in evaluation mode."""

    def decode(self, latents: Latents, *, chunk: int = CHUNK) -> DecodedImages:
        """The images of scaled latents, as `decode_latents` makes them."""
        return decode_latents(self.network, latents, chunk=chunk)

    @torch.no_grad()
    def encode(self, images: DecodedImages, *, chunk: int = CHUNK) -> LatentMoments:
        """The distributions of images in [-1, 1], `chunk` of them at work together, with deterministic kernels."""
        with _exact_kernels():
            found = [self.network.encode(part, return_dict=False)[0] for part in images.float().split(chunk)]
        mean, std = torch.cat([one.mean for one in found]), torch.cat([one.std for one in found])
        scale = self.card.scale
        return LatentMoments((mean - scale.shift_factor) * scale.scaling_factor, std * scale.scaling_factor)


@torch.no_grad()
def decode_latents(network: Any, latents: Latents, *, chunk: int = CHUNK) -> DecodedImages:
    """The images of scaled latents, in [-1, 1] and a little beyond at times, by diffusers' AutoencoderKL `network`.

    At most `chunk` images are at work together, and fewer large ones; an image of more than TILED_ABOVE pixels along a
    side is decoded in tiles that overlap. With deterministic kernels, so that an image is its seed on the same machine.
    """
    config = network.config
    side = max(latents.shape[2:]) * 2 ** (len(config.block_out_channels) - 1)
    encoded = latents.float() / config.scaling_factor + (config.shift_factor or 0.0)
    parts = encoded.to(network.dtype).split(max(1, min(chunk, CHUNK_PIXELS // side**2)))
    with _ONE_AT_A_TIME, _exact_kernels(), _tiling(network, wanted=side > TILED_ABOVE):
        return torch.cat([network.decode(part, return_dict=False)[0] for part in parts])


def _exact_kernels() -> AbstractContextManager[None]:
    exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return exact


@contextmanager
def _tiling(network: Any, *, wanted: bool) -> Iterator[None]:
    """Tiles if they are wanted here or were enabled before; what was enabled stays as it was."""
    before = network.use_tiling
    network.use_tiling = before or wanted
    try:
        yield
    finally:
        network.use_tiling = before


def read_autoencoder(given: Path) -> AutoencoderCard:
    """The card of the autoencoder in the folder `given`, its own or a whole pipeline's; InputError when there is none.

    Also when there is not all of it.
    """
    folder = component_folder(given, "vae")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no autoencoder: it has no config.json; {OPTION} takes a local folder of an AutoencoderKL, or "
            "of a pipeline with one, as diffusers saves it"
        )
    config = read_json(path)
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise InputError(f"{folder} is no autoencoder: its config.json holds {kind}; {OPTION} takes an AutoencoderKL")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise InputError(f"{path} normalises each channel (latents_mean, latents_std), which is not supported")
    known = _config(path, config)
    return AutoencoderCard(
        folder=folder,
        latent_channels=known.latent_channels,
        image_channels=known.out_channels,
        downsampling=2 ** (len(known.block_out_channels) - 1),
        scale=LatentScale(scaling_factor=known.scaling_factor, shift_factor=known.shift_factor or 0.0),
        picture_size=known.sample_size if "sample_size" in config else None,
        weights=find_weights(folder, (DIFFUSERS_STEM,)),
    )


def require_package() -> None:
    """MissingExtraError when diffusers is missing, which a long run then learns at its start."""
    diffusers_package()


@offline()
def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    """The autoencoder in `folder`, as `read_autoencoder` takes it, in float32.

    InputError when it lacks a tensor, which would be drawn at random.
    """
    card, package = read_autoencoder(folder), diffusers_package()
    with importing("diffusers", "latent"):  # It imports its parts when they are asked for.
        kind = package.AutoencoderKL
    try:
        with quietly():
            network, found = kind.from_pretrained(
                card.folder,
                local_files_only=True,
                **telling(card.weights),
                low_cpu_mem_usage=False,  # True needs one more package.
                ignore_mismatched_sizes=True,  # They are told below, in one line.
                output_loading_info=True,
            )
    except Exception as error:  # noqa: BLE001 the libraries have errors of their own for a damaged file
        raise InputError(f"{card.folder} cannot be loaded: {first_line(error)}; give {OPTION} a whole folder") from None
    if wrong := {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}:
        names = ", ".join(sorted(wrong)[:5])
        raise InputError(f"{card.folder} lacks {names}, or has it in another shape; give {OPTION} a whole folder")
    require_finite(network.state_dict(), card.folder)
    return Autoencoder(card=card, network=network.float().eval().requires_grad_(False).to(device))


def load_decoder(card: AutoencoderCard | None, device: torch.device) -> Callable[[Latents], DecodedImages]:
    """What makes images of a student's last states: the autoencoder's decoder, or nothing where they are images."""
    return load_autoencoder(card.folder, device).decode if card else lambda images: images


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What is read of config.json; the defaults are those of diffusers, for files that leave something out."""

    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no pictures, and sizes that cannot be meant."""
        if self.out_channels not in PICTURE_CHANNELS:
            raise InputError(f"out_channels is {self.out_channels}; pictures have 1 or 3")
        if not 0 < self.scaling_factor < math.inf:
            raise InputError(f"scaling_factor is {self.scaling_factor}; it must be a positive number")
        if not math.isfinite(self.shift_factor or 0):
            raise InputError(f"shift_factor is {self.shift_factor}; a number is expected")
        levels = len(self.block_out_channels)
        if levels not in range(1, MAX_LEVELS + 1) or {len(self.down_block_types), len(self.up_block_types)} != {levels}:
            raise InputError(
                f"there are {levels} block_out_channels, {len(self.down_block_types)} down_block_types and "
                f"{len(self.up_block_types)} up_block_types; as many of each are expected, 1 to {MAX_LEVELS}"
            )
        channels = {f"block_out_channels[{level}]": number for level, number in enumerate(self.block_out_channels)}
        channels |= {"latent_channels": self.latent_channels, "in_channels": self.in_channels}
        _require_within(MAX_CHANNELS, channels)
        _require_within(MAX_LAYERS, {"layers_per_block": self.layers_per_block})
        _require_within(min(self.block_out_channels), {"norm_num_groups": self.norm_num_groups})


def _require_within(most: int, values: dict[str, int]) -> None:
    """InputError that names the first of `values` that is not from 1 to `most`."""
    for name, value in values.items():
        if not 1 <= value <= most:
            raise InputError(f"{name} is {value!s:.20}; allowed: 1 to {most}")


def _config(path: Path, plain: dict[str, Any]) -> _Config:
    known = {**to_plain(_Config()), **plain}
    return from_plain(_Config, {field.name: known[field.name] for field in fields(_Config)}, where=str(path))


def diffusers_package() -> Any:
    """The package; MissingExtraError without it."""
    with importing("diffusers", "latent"):
        import diffusers
    return diffusers
