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
from safetensors import SafetensorError
from torch import Tensor

from ard.config import from_plain, to_plain
from ard.errors import InputError
from ard.extras import importing
from ard.files import read_json
from ard.offline import offline, quietly
from ard.types import Latents

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICTURE_CHANNELS = {1, 3}
# At most so many images are decoded together, and so many pixels: Stable Diffusion's decoder has 256 channels of each.
CHUNK = 8
CHUNK_PIXELS = CHUNK * 512**2
TILED_ABOVE = 1024  # An image with a side of more pixels is decoded in overlapping tiles.

_ONE_AT_A_TIME = Lock()  # The kernels' settings are the process's and tiling is the network's: threads take turns.

DecodedImages: TypeAlias = Float[Tensor, "batch colour image_height image_width"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderCard:
    """What an autoencoder's folder says of it; read without loading it."""

    folder: Path
    latent_channels: int
    image_channels: int
    downsampling: int
    """Pixels along a side for each latent."""
    scaling_factor: float
    shift_factor: float
    """A latent is (encoded - shift_factor) scaling_factor."""

    @property
    def weights(self) -> Path:
        """The file with its weights."""
        return self.folder / WEIGHTS


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
        return LatentMoments((mean - self.card.shift_factor) * self.card.scaling_factor, std * self.card.scaling_factor)


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


def read_autoencoder(folder: Path) -> AutoencoderCard:
    """The card of the autoencoder in `folder`; InputError when there is none, or not all of it."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} is no autoencoder: it has no config.json; --vae takes a local folder of an AutoencoderKL, as "
            "diffusers saves it"
        )
    config = read_json(path)
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise InputError(f"{folder} is no autoencoder: its config.json holds {kind}; --vae takes an AutoencoderKL")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise InputError(f"{path} normalises each channel (latents_mean, latents_std), which is not supported")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}, and other weights are not read; convert them for --vae")
    known = _config(path, config)
    return AutoencoderCard(
        folder=folder,
        latent_channels=known.latent_channels,
        image_channels=known.out_channels,
        downsampling=2 ** (len(known.block_out_channels) - 1),
        scaling_factor=known.scaling_factor,
        shift_factor=known.shift_factor or 0.0,
    )


def find_autoencoder(vae: Path | None, channels: int, student: Path) -> AutoencoderCard | None:
    """The card of the autoencoder in `vae` for the student in `student`, whose states have so many channels.

    None for a student that makes pictures itself. InputError when latents have no autoencoder or another's channels.
    """
    if vae is None:
        if channels in PICTURE_CHANNELS:
            return None
        raise InputError(
            f"the student in {student} makes latents of {channels} channels, no pictures; name the folder of the "
            "autoencoder that decodes them with --vae"
        )
    card = read_autoencoder(vae)
    if card.latent_channels != channels:
        raise InputError(
            f"the autoencoder in {vae} decodes latents of {card.latent_channels} channels, and the student in "
            f"{student} makes {channels}; give the autoencoder of its teacher with --vae"
        )
    with offline():
        _diffusers()  # A long run learns at its start that the package is missing.
    return card


@offline()
def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    """The autoencoder in `folder`; InputError when it lacks a tensor, which would be drawn at random."""
    card, diffusers = read_autoencoder(folder), _diffusers()
    try:
        with quietly():
            network, found = diffusers.AutoencoderKL.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # True needs one more package.
                ignore_mismatched_sizes=True,  # They are told below, in one line.
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded: {reason.strip(' .')}; give --vae a whole folder") from None
    if wrong := {*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])}:
        names = ", ".join(sorted(wrong)[:5])
        raise InputError(f"{folder} lacks {names}, or has it in another shape; give --vae a whole folder")
    return Autoencoder(card=card, network=network.float().eval().requires_grad_(False).to(device))


def load_decoder(card: AutoencoderCard | None, device: torch.device) -> Callable[[Latents], DecodedImages]:
    """What makes images of a student's last states: the autoencoder's decoder, or nothing where they are images."""
    return load_autoencoder(card.folder, device).decode if card else lambda images: images


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What is read of config.json; the defaults are those of diffusers, for files that leave something out."""

    latent_channels: int = 4
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    scaling_factor: float = 0.18215
    shift_factor: float | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no pictures."""
        if self.out_channels not in PICTURE_CHANNELS:
            raise InputError(f"out_channels is {self.out_channels}; pictures have 1 or 3")
        if not 0 < self.scaling_factor < math.inf:
            raise InputError(f"scaling_factor is {self.scaling_factor}; it must be a positive number")


def _config(path: Path, plain: dict[str, Any]) -> _Config:
    known = {**to_plain(_Config()), **plain}
    return from_plain(_Config, {field.name: known[field.name] for field in fields(_Config)}, where=str(path))


def _diffusers() -> Any:
    with importing("diffusers", "latent"):
        import diffusers
    return diffusers
