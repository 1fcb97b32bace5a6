"""The ranks of a run as torchrun sets them, and sums over them; one process is rank 0 of 1 and its own sum."""

import os

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sum_over_ranks(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The sum of `values` over all ranks, on every rank; the values themselves where no process group was made."""
    return _reduced(values, distributed.ReduceOp.SUM) if _has_group() else values


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
