"""ard images cache: real images to latents, once."""

import functools
from dataclasses import dataclass
from pathlib import Path

from ard.cli.options import print_plan, tell
from ard.core.devices import DeviceName, resolve_device
from ard.core.progress import progress_bar
from ard.images.latent_cache import make_cache, plan_cache, usual_size
from ard.images.look import Check, look_over
from ard.images.real import Columns
from ard.networks.autoencoder import Autoencoder, load_autoencoder, read_autoencoder


@dataclass(frozen=True, kw_only=True)
class ImagesCache:
    """Encode real images with the teacher's autoencoder, once, for `ard distill --adversarial --real`.

    Each picture is cut to a square at its centre and made --size pixels wide, as ADM and DiT do it. Kept are mean and
    spread of its latents, so that each use draws anew, as DiT's training does. A killed run goes on with the same
    command. For instance:

        ard images cache --images imagenet/train --vae sd-vae-ft-ema --size 256 --out runs/latents
        ard images cache --images 'shards/train-{000..146}.tar' --vae sd-vae-ft-ema --out runs/latents
    """

    images: Path
    """A folder of PNG, JPEG, WebP, BMP or TIFF files (a sub-folder per class), WebDataset's .tar files (a folder, or a
    pattern), or a data set that datasets saved to disk."""
    vae: Path
    """A local folder of diffusers' AutoencoderKL, or of a pipeline with one: the teacher's."""
    out: Path
    """Folder of the cache."""
    size: int | None = None
    """Side of the images in pixels. None: that of the pictures where they are squares of one size, else the size that
    the autoencoder was trained on."""
    shard_size: int = 1024
    """Images per file."""
    image_column: str = ""
    """A saved data set's column of images, or the ending of the pictures' names in tars; empty: the only one."""
    label_column: str = ""
    """A saved data set's column of classes; empty: the only one."""
    check: Check = Check.SAMPLE
    """Before the work: decode a sample and read every header, or decode all."""
    device: DeviceName = "auto"
    """Where to compute."""
    dry_run: bool = False
    """Print the resolved configuration and do nothing."""

    def run(self) -> None:
        """Encode and publish what is missing."""
        device = resolve_device(self.device)
        card = read_autoencoder(self.vae)
        columns = Columns(image=self.image_column, label=self.label_column)
        pictures = look_over(self.images, columns, self.check, classes=True).pictures
        size = usual_size(pictures, card) if self.size is None else self.size
        manifest = plan_cache(pictures, card, size=size, shard_size=self.shard_size)
        if self.dry_run:
            return print_plan({"manifest": manifest, "device": str(device), "out": self.out})

        @functools.cache
        def load() -> Autoencoder:
            tell(pictures.summary)
            return load_autoencoder(self.vae, device)

        with progress_bar(manifest.num, "encode", unit="image") as bar:
            make_cache(self.out, manifest, pictures, load, device=device, progress=bar.update)
        print(f"latents {self.out}: {manifest.num} images of {size} x {size} in {manifest.num_shards} shards")
