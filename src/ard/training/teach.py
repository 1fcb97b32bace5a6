"""Training a teacher on images: eps- or velocity-prediction with label dropout for classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from ard.datasets import ImageData
from ard.devices import autocast
from ard.diffusion import Diffusion
from ard.models.transformer import Transformer
from ard.training.loop import TrainConfig
from ard.training.randomness import batch_ids, generator_for


def teacher_loss(
    network: Transformer, diffusion: Diffusion, data: ImageData, config: TrainConfig, *, label_dropout: float
) -> Callable[[int], Tensor]:
    """The denoising loss of update `step`: mean squared error of eps or v at a random time."""
    device = next(network.parameters()).device
    images, labels = data.images.to(device), data.labels.to(device)

    def loss_at(step: int) -> Tensor:
        ids = batch_ids(len(images), seed=config.seed, step=step, batch=config.batch_size).to(device)
        generator = generator_for("teach", config.seed, step)
        x_0, t = images[ids], diffusion.sample_times(len(ids), generator).to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        dropped = (torch.rand(len(ids), generator=generator) < label_dropout).to(device)
        label = torch.where(dropped, data.num_classes, labels[ids])
        with autocast(device):
            output = network(diffusion.add_noise(x_0, noise, t), diffusion.network_time(t), label)
        return (output.float() - diffusion.target(x_0, noise)).square().mean()

    return loss_at
