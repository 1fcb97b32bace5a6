"""Training a teacher on images: eps- or velocity-prediction with label dropout for classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from ard.core.devices import autocast, send
from ard.core.draws import normal, uniform
from ard.core.random import batch_ids, generator_for
from ard.diffusion.process import Diffusion
from ard.images import ImageData
from ard.networks.transformer import Transformer
from ard.training.loop import TrainConfig


def teacher_loss(
    network: Transformer, diffusion: Diffusion, data: ImageData, config: TrainConfig, *, label_dropout: float
) -> Callable[[int], Tensor]:
    """The denoising loss of a pass: mean squared error of eps or v at a random time.

    A pass takes its rows of what the whole update draws, so that passes add up to the update.
    """
    device = next(network.parameters()).device
    images, labels = data.images.to(device), data.labels.to(device)

    def loss_at(number: int) -> Tensor:
        step, part = divmod(number, config.accumulate)
        rows = slice(part * config.pass_size, (part + 1) * config.pass_size)
        ids = batch_ids(len(images), seed=config.seed, step=number, batch=config.pass_size)
        generator = generator_for("teach", config.seed, step)
        t = diffusion.sample_times(config.batch_size, generator)[rows]
        noise = normal((config.batch_size, *images.shape[1:]), generator=generator)[rows]
        dropped = (uniform((config.batch_size,), generator=generator) < label_dropout)[rows]
        ids, t, noise, dropped = (send(one, device) for one in (ids, t, noise, dropped))
        x_0 = images[ids]
        label = torch.where(dropped, data.num_classes, labels[ids])
        with autocast(device):
            output = network(diffusion.add_noise(x_0, noise, t), diffusion.network_time(t), label)
        return (output.float() - diffusion.target(x_0, noise)).square().mean()

    return loss_at
