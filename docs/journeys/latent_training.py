"""What a training in diffusers is made of: an autoencoder of pictures, and the loop that teaches their latents."""

import copy
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn


def train_autoencoder(pictures: Tensor, *, iterations: int, batch_size: int = 32) -> AutoencoderKL:
    """An autoencoder of pictures (row, 3, side, side) whose latents have 4 channels, half the side, spread 1."""
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=pictures.shape[-1],
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for step in range(iterations):
        x = pictures[torch.randint(len(pictures), (batch_size,))]
        posterior = vae.encode(x).latent_dist
        loss = (vae.decode(posterior.sample()).sample - x).square().mean() + 1e-4 * posterior.kl().mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1.02 - step / iterations)
        optimizer.step()
    print(f"autoencoder: loss {loss.item():.4f}", flush=True)
    vae.register_to_config(scaling_factor=1 / encoded(vae.eval(), pictures[:256]).std().item())
    return vae


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The latents of pictures, multiplied by the autoencoder's scale."""
    return torch.cat([vae.encode(some).latent_dist.mean for some in pictures.split(64)]) * vae.config.scaling_factor


def train_denoiser(
    network: nn.Module,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    latents: Tensor,
    *,
    iterations: int,
    batch_size: int = 64,
) -> nn.Module:
    """Train `predict`(x_t, t, indices of the latents), which calls the network, to tell the noise; its average."""
    noising, average = DDPMScheduler(), copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0)
    for step in range(iterations):
        chosen, t = torch.randint(len(latents), (batch_size,)), torch.randint(1000, (batch_size,))
        noise = torch.randn(batch_size, *latents.shape[1:])
        loss = (predict(noising.add_noise(latents[chosen], noise, t), t, chosen) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50, 1.05 - step / iterations)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        for kept, now in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(now.detach(), 1 - decay)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return average.eval()
