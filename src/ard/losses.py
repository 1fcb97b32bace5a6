"""The regression loss of step distillation and ARD."""

from jaxtyping import Float
from torch import Tensor

from ard.types import States


def step_errors(x_hat: States, x: States) -> Float[Tensor, "batch step"]:
    """Mean squared distance to the teacher's state, per trajectory and step."""
    return (x_hat - x).square().flatten(2).mean(dim=2)


def regression_loss(x_hat: States, x: States) -> Float[Tensor, " batch"]:
    """Mean squared distance to the teacher's states, averaged over the steps (Eq. 6; without history, Eq. 4)."""
    return step_errors(x_hat, x).mean(dim=1)
