"""A latent cache: real images encoded once, each kept as the mean and the spread of its latents.

An encoder gives a distribution per image, and latent diffusion models are trained on draws from it (Rombach et al.,
2022; Peebles and Xie, 2023). Mean and standard deviation are kept, so that every use can draw anew without the encoder.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ard.config import differences, fingerprint_of, from_plain, to_plain
from ard.datasets.picture_set import PictureSet
from ard.errors import InputError, require_at_least
from ard.files import read_json, remove_leftovers, write_json
from ard.models.autoencoder import Autoencoder, AutoencoderCard
from ard.ranks import rank_and_world
from ard.trajectories.shards import Shard, open_shard, write_shard
from ard.types import Labels, Latents

SCHEMA, KIND = 1, "latents"
DECODED = 64  # Pictures in memory together.
AGAIN = "run the same ard images cache command again"


@dataclass(frozen=True, kw_only=True)
class LatentManifest:
    """Everything that decides a cache's content."""

    images: str
    """The pictures' fingerprint."""
    autoencoder: str
    """SHA-256 of its weights."""
    scaling_factor: float
    shift_factor: float
    size: int
    """Side of the square images that were encoded, in pixels."""
    shape: tuple[int, ...]
    """Channel, height, width of the latents."""
    class_names: tuple[str, ...]
    num_classes: int
    num: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """How many shard files there are."""
        return -(-self.num // self.shard_size)

    def rows(self, shard: int) -> range:
        """The images of `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num))

    @property
    def identity(self) -> str:
        """A fingerprint that every shard carries."""
        return fingerprint_of(to_plain(self))


def plan_cache(pictures: PictureSet, card: AutoencoderCard, *, size: int, shard_size: int = 1024) -> LatentManifest:
    """The manifest of a cache that is to be made; InputError for what cannot be encoded."""
    require_at_least(1, {"size": size, "shard_size": shard_size})
    if size % card.downsampling:
        raise InputError(f"size is {size}; the autoencoder needs a multiple of {card.downsampling}")
    side = size // card.downsampling
    with card.weights.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return LatentManifest(
        images=pictures.identity,
        autoencoder=weights,
        scaling_factor=card.scaling_factor,
        shift_factor=card.shift_factor,
        size=size,
        shape=(card.latent_channels, side, side),
        class_names=pictures.class_names,
        num_classes=pictures.num_classes,
        num=pictures.count,
        shard_size=shard_size,
    )


def make_cache(
    out: Path,
    manifest: LatentManifest,
    pictures: PictureSet,
    autoencoder: Callable[[], Autoencoder],
    *,
    device: torch.device,
    progress: Callable[[int], None],
) -> None:
    """Make or complete the cache in `out`: shards that are there stay. Shard k belongs to rank k mod world.

    `autoencoder` is asked for when there is something to encode.
    """
    if _prepare(out, manifest):
        return progress(manifest.num)
    rank, world = rank_and_world()
    for shard in range(rank, manifest.num_shards, world):
        if not _is_published(out, manifest, shard):
            tensors = _encode(manifest.rows(shard), manifest, pictures, autoencoder(), device)
            write_shard(out / _name(shard), tensors, manifest.identity)
        progress(len(manifest.rows(shard)))
    if all(_is_published(out, manifest, shard) for shard in range(manifest.num_shards)):
        shards = [_open(out / _name(shard)) for shard in range(manifest.num_shards)]
        _save_manifest(out, manifest, {shard.path.name: shard.header_crc for shard in shards})


class LatentCache:
    """A complete cache, from which latents are drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, checksums = load_latent_manifest(folder)
        if len(checksums) != self.manifest.num_shards:
            raise InputError(f"{folder} is incomplete; {AGAIN}")
        self.shards = [_open(folder / _name(shard)) for shard in range(self.manifest.num_shards)]
        if wrong := [shard.path for shard in self.shards if checksums.get(shard.path.name) != shard.header_crc]:
            raise InputError(f"{wrong[0]} is foreign or damaged; delete it and {AGAIN}")

    @functools.cached_property
    def labels(self) -> Labels:
        """Every image's class; 0 where there are no classes."""
        return torch.cat([shard.read("label") for shard in self.shards])

    def draw(self, ids: Tensor, generator: torch.Generator) -> Latents:
        """A draw from the distribution of each of the images `ids`."""
        mean, std = (self._rows(name, ids) for name in ("mean", "std"))
        return mean + std * torch.randn(mean.shape, generator=generator)

    def _rows(self, name: str, ids: Tensor) -> Latents:
        """Rows of one of the tensors, in float32."""
        size = self.manifest.shard_size
        rows = np.stack([self._maps[name][index // size][index % size] for index in ids.tolist()])
        values = torch.from_numpy(rows).view(-1).view(torch.float16)
        return values.view(len(ids), *self.manifest.shape).float()

    @functools.cached_property
    def _maps(self) -> dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
        return {name: [shard.map(name) for shard in self.shards] for name in ("mean", "std")}


def load_latent_manifest(folder: Path) -> tuple[LatentManifest, dict[str, str]]:
    """The manifest of a cache and its shards' checksums; InputError when `folder` is none."""
    plain = read_json(folder / "manifest.json")
    if plain.pop("kind", None) != KIND or plain.pop("schema", None) != SCHEMA:
        raise InputError(f"{folder} is no latent cache of this version of ard; ard images cache makes one")
    checksums = plain.pop("shards")
    return from_plain(LatentManifest, plain, where=str(folder / "manifest.json")), checksums


def _prepare(out: Path, manifest: LatentManifest) -> bool:
    """Whether the cache is complete already; InputError when `out` holds something else."""
    if (out / "manifest.json").exists():
        stored, checksums = load_latent_manifest(out)
        if changes := differences(to_plain(stored), to_plain(manifest)):
            raise InputError(f"{out} holds other latents ({'; '.join(changes)}); choose another --out")
        remove_leftovers(out)
        return bool(checksums) and all(_is_published(out, manifest, shard) for shard in range(manifest.num_shards))
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds other files and no manifest.json; choose another --out")
    _save_manifest(out, manifest, {})
    return False


def _save_manifest(out: Path, manifest: LatentManifest, checksums: dict[str, str]) -> None:
    """Publish the manifest; `checksums` is empty until the cache is complete."""
    write_json(out / "manifest.json", {"kind": KIND, "schema": SCHEMA, **to_plain(manifest), "shards": checksums})


def _encode(
    rows: range, manifest: LatentManifest, pictures: PictureSet, autoencoder: Autoencoder, device: torch.device
) -> dict[str, Tensor]:
    """A shard's tensors; InputError when the encoder yields something that float16 cannot hold."""
    channels, found = autoencoder.card.image_channels, []
    for start in range(0, len(rows), DECODED):
        images = pictures.images(rows[start : start + DECODED], size=manifest.size, channels=channels)
        found.append(autoencoder.encode(images.to(device)))
    mean, std = (torch.cat(parts).to("cpu", torch.float16) for parts in zip(*found, strict=True))
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise InputError(f"the autoencoder yields infinite or not-a-number latents for {pictures.name_of(rows[0])} on")
    labels = pictures.labels[list(rows)] if len(pictures.labels) else torch.zeros(len(rows), dtype=torch.long)
    return {"mean": mean, "std": std, "label": labels}


def _name(shard: int) -> str:
    return f"latents-{shard:06d}.safetensors"


def _open(path: Path) -> Shard:
    """A shard's header; a bad one is told with the command that repairs it."""
    try:
        return open_shard(path)
    except InputError:
        raise InputError(f"{path} is missing or damaged; delete it and {AGAIN}") from None


def _is_published(out: Path, manifest: LatentManifest, shard: int) -> bool:
    """Whether a whole shard of this cache is there; InputError when another's is in its place."""
    path = out / _name(shard)
    if not path.exists():
        return False
    found = _open(path)
    if found.identity != manifest.identity:
        raise InputError(f"{path} is foreign: it belongs to other latents; move it away")
    return found.rows == len(manifest.rows(shard))
