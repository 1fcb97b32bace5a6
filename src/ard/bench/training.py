"""Updates of a student: ours, and with the usual dense layout on the same weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ard.analysis.flops import student_row
from ard.bench.contenders import random_batch, random_student
from ard.bench.dense import dense_forward
from ard.devices import autocast
from ard.errors import InputError
from ard.losses import regression_loss
from ard.models.student import Student, StudentConfig
from ard.models.transformer import Transformer
from ard.training.state import new_state
from ard.types import Labels, States


@dataclass(frozen=True, kw_only=True)
class Update:
    """One update of a student; `run` also advances its weights."""

    name: str
    run: Callable[[], Tensor]


def updates(network: Transformer, config: StudentConfig, batch_size: int) -> list[Update]:
    """`ours` and `dense`, each with a student of its own that starts from the same weights.

    An update is the forward pass over all steps, the loss of Eq. 6, the backward pass, the clipped gradient, AdamW and
    the EMA. InputError when the two do not have equal losses and gradients.
    """
    device = network.x_embedder.weight.device
    batch = random_batch(network.config, batch_size, device)
    noises = torch.randn((config.num_steps, *batch.noise.shape), generator=torch.Generator().manual_seed(3))
    states = torch.cat([batch.noise.unsqueeze(1), noises.transpose(0, 1).to(device)], dim=1)
    forwards = {"ours": lambda student, given, label: student(given, label), "dense": dense_forward}
    made, gradients = [], []
    for name, forward in forwards.items():
        student = random_student(Transformer(network.config), config)
        student.network.load_state_dict(network.state_dict())
        student.to(device).train().requires_grad_(True)
        _backward(student, forward, states, batch.label)
        gradients.append(torch.cat([one.grad.flatten() for one in student.parameters() if one.grad is not None]))
        made.append(Update(name=name, run=_update(student, forward, states, batch.label)))
    off = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    if off > (1e-4 if device.type == "cpu" else 2e-2):
        raise InputError(f"ours and dense have different gradients, by {off:.1e}: nothing is timed")
    return made


def update_macs(config: StudentConfig, network: Transformer) -> int:
    """Multiply-accumulates of an update per trajectory: forward once, backward twice as much."""
    return 3 * student_row(network.config, config).cost.total


Forward = Callable[[Student, States, Labels], States]


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
