"""Updates of a student: ours, its variants, and with the usual dense layout, all on the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ard.analysis.flops import student_row
from ard.bench.contenders import random_batch, random_student
from ard.bench.dense import dense_forward
from ard.bench.memory import peak_bytes
from ard.core.devices import autocast
from ard.core.errors import InputError
from ard.core.types import Labels, States
from ard.methods.losses import regression_loss
from ard.networks.block_execution import block_runner
from ard.networks.transformer import Transformer
from ard.student.student import Student, StudentConfig
from ard.training.state import new_state


class Layout(StrEnum):
    """How an update is computed."""

    OURS = "ours"  # As `ard distill` does it.
    DENSE = "dense"  # All steps as one row under a mask, adaLN per token: the public re-implementations.
    RECOMPUTED = "recomputed"  # Ours with --activation-checkpointing.
    COMPILED = "compiled"  # Ours with --compile.


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update of a student; `run` also advances its weights."""

    name: Layout
    run: Callable[[], Tensor]


def updates(
    network: Transformer,
    config: StudentConfig,
    batch_size: int,
    layouts: Sequence[Layout] = (Layout.OURS, Layout.DENSE),
) -> list[Update]:
    """An update of each layout, each with a student of its own that starts from the same weights.

    An update is the forward pass over all steps, the loss of Eq. 6, the backward pass, the clipped gradient, AdamW and
    the EMA. InputError when one has not the gradient of the first.
    """
    device = network.x_embedder.weight.device
    batch = random_batch(network.config, batch_size, device)
    noises = torch.randn((config.num_steps, *batch.noise.shape), generator=torch.Generator().manual_seed(3))
    states = torch.cat([batch.noise.unsqueeze(1), noises.transpose(0, 1).to(device)], dim=1)
    made, gradients = [], []
    for layout in layouts:
        forward = dense_forward if layout is Layout.DENSE else _own_forward
        student = random_student(Transformer(network.config), config)
        student.network.load_state_dict(network.state_dict())
        student.to(device).train().requires_grad_(True)
        student.network.run_block = block_runner(
            student.network.blocks,
            recompute=layout is Layout.RECOMPUTED,
            compiled=layout is Layout.COMPILED,
            device=device,
        )
        _backward(student, forward, states, batch.label)
        gradients.append(torch.cat([one.grad.flatten() for one in student.parameters() if one.grad is not None]))
        made.append(Update(name=layout, run=_update(student, forward, states, batch.label)))
    for layout, gradient in zip(layouts[1:], gradients[1:], strict=True):
        off = float((gradients[0] - gradient).norm() / gradient.norm())
        if off > (1e-4 if device.type == "cpu" else 2e-2):
            raise InputError(f"{layouts[0]} and {layout} have different gradients, by {off:.1e}: nothing is timed")
    return made


def counted_mb(update: Update, device: torch.device) -> float | None:
    """What tensors an update holds at most besides those that stay: weights, moments and average.

    None on a GPU, which counts for itself, and for compiled code, whose tensors are not seen.
    """
    if device.type == "cuda" or update.name is Layout.COMPILED:
        return None
    update.run()  # The first one makes the moments.
    return peak_bytes(update.run) / 2**20


def update_macs(config: StudentConfig, network: Transformer) -> int:
    """Multiply-accumulates of an update per trajectory: forward once, backward twice as much."""
    return 3 * student_row(network.config, config).cost.total


Forward = Callable[[Student, States, Labels], States]


def _own_forward(student: Student, states: States, label: Labels) -> States:
    return student(states, label)


def _backward(student: Student, forward: Forward, states: States, label: Labels) -> Tensor:
    with autocast(states.device):
        x_hat = forward(student, states[:, :-1], label)
    loss = regression_loss(x_hat.float(), states[:, 1:]).mean()
    loss.backward()
    return loss.detach()


def _update(student: Student, forward: Forward, states: States, label: Labels) -> Callable[[], Tensor]:
    optimiser = AdamW(student.parameters(), 1e-4, fused=True)
    state, parameters = new_state(student, optimiser), list(student.parameters())

    def run() -> Tensor:
        optimiser.zero_grad()
        loss = _backward(student, forward, states, label)
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimiser.step()
        state.average_weights(0.999)
        return loss

    return run
