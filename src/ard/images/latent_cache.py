"""A latent cache: real images encoded once, each kept as the mean and the spread of its latents.

An encoder gives a distribution per image, and latent diffusion models are trained on draws from it (Rombach et al.,
2022; Peebles and Xie, 2023). Mean and standard deviation are kept, so that every use can draw anew without the encoder.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ard.core.config import fingerprint_of, to_plain
from ard.core.draws import normal
from ard.core.errors import InputError, require_at_least
from ard.core.ranks import rank_and_world
from ard.core.sharded.making import KEPT, Claim, publish_shard
from ard.core.sharded.rows import Shards
from ard.core.sharded.store import Checksums, Expected, Kind, ShardedManifest, open_shards, read_record, require_sizes
from ard.core.stopping import stopping
from ard.core.types import Labels, Latents
from ard.images.picture_set import PictureSet
from ard.networks.autoencoder import Autoencoder, AutoencoderCard, LatentMoments, LatentScale
from ard.networks.transformer import check_shape

LOOKED_AT = 16  # Pictures whose size is read to find the usual one.
DECODED = 64  # Pictures in memory together.
LATENTS = Kind(
    record="manifest.json",
    head={"kind": "latents", "schema": 1},
    stem="latents",
    name="latent cache",
    holds="latents",
    command="ard images cache",
)


@dataclass(frozen=True, kw_only=True)
class LatentManifest(ShardedManifest):
    """Everything that decides a cache's content."""

    KIND: ClassVar[Kind] = LATENTS

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

    def __post_init__(self) -> None:
        """Refuse what no cache can be."""
        require_sizes(num=self.num, shard_size=self.shard_size)
        check_shape(self.shape)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.num

    @property
    def scale(self) -> LatentScale:
        """How the latents are scaled."""
        return LatentScale(scaling_factor=self.scaling_factor, shift_factor=self.shift_factor)

    @property
    def num_shards(self) -> int:
        """How many shard files there are."""
        return -(-self.num // self.shard_size)

    def rows(self, shard: int) -> range:
        """The images of `shard`."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num))

    def expected(self, shard: int) -> Expected:
        """What `shard` must hold: the moments of its images' latents, and the images' labels."""
        num = len(self.rows(shard))
        moments = (torch.float16, (num, *self.shape))
        return Expected({"mean": moments, "std": moments, "label": (torch.int64, (num,))}, {})

    @property
    def shard_identity(self) -> str:
        """What every shard carries."""
        return self.identity

    @functools.cached_property
    def identity(self) -> str:
        """A fingerprint of everything that decides the content."""
        return fingerprint_of(to_plain(self))


def usual_size(pictures: PictureSet, card: AutoencoderCard) -> int:
    """The side of the pictures where all that are looked at are squares of one size, else the autoencoder's own.

    InputError where neither is known.
    """
    looked_at = {index * (pictures.count - 1) // max(1, LOOKED_AT - 1) for index in range(LOOKED_AT)}
    sides = {side for index in looked_at for side in pictures.header(index)[:2]}
    if len(sides) == 1 and (side := sides.pop()) % card.downsampling == 0:
        return side
    if card.picture_size:
        return card.picture_size
    raise InputError(
        f"the pictures in {pictures.path} have several sizes, and {card.folder} does not say on which it was trained; "
        f"give --size, a multiple of {card.downsampling}"
    )


def plan_cache(pictures: PictureSet, card: AutoencoderCard, *, size: int, shard_size: int = 1024) -> LatentManifest:
    """The manifest of a cache that is to be made; InputError for what cannot be encoded."""
    require_at_least(1, {"size": size, "shard_size": shard_size})
    if size % card.downsampling:
        raise InputError(f"size is {size}; the autoencoder needs a multiple of {card.downsampling}")
    side = size // card.downsampling
    return LatentManifest(
        images=pictures.identity,
        autoencoder=card.sha256,
        scaling_factor=card.scale.scaling_factor,
        shift_factor=card.scale.shift_factor,
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

    `autoencoder` is asked for when there is something to encode. A signal ends the work by Stopped before the next
    batch.
    """
    claim = Claim(out, manifest)
    rank, world = rank_and_world()
    mine = range(rank, manifest.num_shards, world)
    missing = claim.missing(mine)
    progress(sum(len(manifest.rows(shard)) for shard in mine if shard not in missing))
    with stopping() as stop:
        for shard in missing:
            rows, found = manifest.rows(shard), list[LatentMoments]()
            for start in range(0, len(rows), DECODED):
                stop.pause(KEPT)
                found.append(_encode(rows[start : start + DECODED], manifest, pictures, autoencoder(), device))
                progress(len(found[-1].mean))
            publish_shard(out, manifest, shard, _shard_tensors(rows, pictures, found))
    claim.finish()


class LatentCache:
    """A complete cache, from which latents are drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, checksums = load_latent_manifest(folder)
        self.shards = Shards(open_shards(folder, self.manifest, checksums), LATENTS)

    @functools.cached_property
    def labels(self) -> Labels:
        """Every image's class; 0 where there are no classes."""
        return torch.cat([self.shards.tensor(shard, "label") for shard in range(self.manifest.num_shards)])

    def draw(self, ids: Tensor, generator: torch.Generator) -> Latents:
        """A draw from the distribution of each of the images `ids`."""
        mean, std = (self._rows(name, ids) for name in ("mean", "std"))
        return mean + std * normal(mean.shape, generator=generator)

    def _rows(self, name: str, ids: Tensor) -> Latents:
        """Rows of one of the tensors, in float32."""
        return self.shards.rows(name, ids, shard_size=self.manifest.shard_size).float()


def load_latent_manifest(folder: Path) -> tuple[LatentManifest, Checksums]:
    """The manifest of a cache and its shards' checksums; InputError when `folder` is none."""
    return read_record(LatentManifest, folder)


def _encode(
    rows: range, manifest: LatentManifest, pictures: PictureSet, autoencoder: Autoencoder, device: torch.device
) -> LatentMoments:
    """What the encoder gives for some pictures."""
    images = pictures.images(rows, size=manifest.size, channels=autoencoder.card.image_channels)
    return autoencoder.encode(images.to(device))


def _shard_tensors(rows: range, pictures: PictureSet, found: Sequence[LatentMoments]) -> dict[str, Tensor]:
    """A shard's tensors; InputError when the encoder has yielded something that float16 cannot hold."""
    mean, std = (torch.cat(parts).to("cpu", torch.float16) for parts in zip(*found, strict=True))
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise InputError(f"the autoencoder yields infinite or not-a-number latents for {pictures.name_of(rows[0])} on")
    labels = pictures.labels[list(rows)] if len(pictures.labels) else torch.zeros(len(rows), dtype=torch.long)
    return {"mean": mean, "std": std, "label": labels}
