"""Random weights: drawn on the CPU, where generators are, and put where the parameter is."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def draw(parameter: Tensor, fill: Callable[[Tensor], object]) -> None:
    """Give `parameter` the values that `fill` draws into a tensor of its shape and precision on the CPU.

    A generator draws on its own device only, and other devices draw other numbers.
    """
    values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    fill(values)
    parameter.copy_(values)
