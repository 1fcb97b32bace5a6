"""Sums over the ranks of a run; one process is its own sum."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from ard.core.errors import InputError
from ard.core.ranks import rank_and_world


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The ranks that torchrun started, able to sum; nothing for one process. InputError when they cannot meet."""
    if rank_and_world()[1] == 1:
        yield
        return
    if "MASTER_ADDR" not in os.environ:
        raise InputError(f"WORLD_SIZE is {rank_and_world()[1]}, but there is no MASTER_ADDR: start it with torchrun")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def sum_over_ranks(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The sum of `values` over all ranks, on every rank; the values themselves where no process group was made."""
    return _reduced(values, distributed.ReduceOp.SUM) if _has_group() else values


def mean_over_ranks(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The mean of `values` over all ranks, on every rank; the values themselves where no process group was made."""
    return sum_over_ranks(values) / distributed.get_world_size() if _has_group() else values


def largest_over_ranks(value: int) -> int:
    """The largest `value` among all ranks, on every rank."""
    return int(_reduced(torch.tensor(value), distributed.ReduceOp.MAX)) if _has_group() else value


def _has_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _reduced(values: Tensor, operation: "distributed.ReduceOp.RedOpType") -> Tensor:
    """Sent from the group's own device: NCCL takes nothing from the CPU."""
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    sent = values.to(device, copy=True).contiguous()
    distributed.all_reduce(sent, op=operation)
    return sent.to(values.device)
