"""A DiT of class-conditional digits in the latents of an autoencoder, trained with diffusers: a DiTPipeline.

    python docs/journeys/train_diffusers.py --out outside

writes outside/digits-pipeline, the pipeline, and outside/digits, the pictures in a folder per class.
"""

import argparse
import copy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from latent_training import encoded, train_autoencoder, train_denoiser
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits() -> tuple[Tensor, Tensor]:
    """(pictures of shape 1797 3 16 16 in [-1, 1], labels)."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    large = torch.nn.functional.interpolate(small, size=16, mode="bilinear")
    return large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


def save_pictures(folder: Path, pictures: Tensor, labels: Tensor) -> None:
    """A PNG per picture in the folder of its class."""
    for index, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = ((picture.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / str(label) / f"{index:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--autoencoder-iterations", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures, labels = digits()
    save_pictures(options.out / "digits", pictures, labels)
    vae = train_autoencoder(pictures, iterations=options.autoencoder_iterations)
    network = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=3,
        sample_size=8,
        out_channels=4,
        num_embeds_ada_norm=len(NAMES),
    ).eval()  # In training mode every block would forget the class at times of its own.
    blocks = network.transformer_blocks
    for block in blocks[1:]:
        block.norm1.emb = blocks[0].norm1.emb  # One embedder of time and class for all blocks, as in DiT.

    def predict(x_t: Tensor, t: Tensor, chosen: Tensor) -> Tensor:
        label = labels[chosen].where(torch.rand(len(t)) > 0.1, len(NAMES))  # No class at times, for guidance.
        return network(x_t, timestep=t, class_labels=label).sample

    average = train_denoiser(network, predict, encoded(vae, pictures), iterations=options.iterations)
    for block in average.transformer_blocks[1:]:
        block.norm1.emb = copy.deepcopy(average.transformer_blocks[0].norm1.emb)  # Files hold no tensor twice.
    names = dict(enumerate(NAMES))
    pipeline = DiTPipeline(average, vae, DDIMScheduler(clip_sample=False), names)
    pipeline.register_to_config(id2label=names)  # Otherwise the names are not saved.
    pipeline.save_pretrained(options.out / "digits-pipeline")


if __name__ == "__main__":
    main()
