"""Where to compute, and in which precision."""

import os
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from ard.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def resolve_device(name: DeviceName) -> torch.device:
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. InputError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, is_there in there.items() if is_there]
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise InputError(f"device {name} is not available on this machine; available: {', '.join(available)}")
    return torch.device(name)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Bf16 where a GPU has it; None elsewhere, where it is slower than fp32 on most machines."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for what is computed there: a GPU copies from page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Bf16 on top of fp32 weights where a GPU has it; fp32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=autocast_dtype(device) is not None)


def default_workers(device: torch.device) -> int:
    """One single-threaded process per core on a CPU, where that is fastest; one process on a GPU."""
    return (os.cpu_count() or 1) if device.type == "cpu" else 1
