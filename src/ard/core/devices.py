"""Where to compute, and in which precision."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Literal

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from ard.core.errors import InputError
from ard.core.ranks import gpu_of_rank, ranks_on_this_machine

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


class Precision(StrEnum):
    """In which precision a network computes."""

    FP32 = "fp32"
    BF16 = "bf16"  # 8 bits of precision, the range of fp32.


def resolve_device(name: DeviceName) -> torch.device:
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. InputError when it is not there.

    Each rank has a GPU of its own, which becomes this process's usual one.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, is_there in there.items() if is_there]
    kind = available[0] if name == "auto" else name
    if kind not in available:
        raise InputError(f"device {kind} is not available on this machine; available: {', '.join(available)}")
    gpu = gpu_of_rank(torch.cuda.device_count()) if kind == "cuda" else None
    if gpu is None:
        return torch.device(kind)
    torch.cuda.set_device(gpu)
    return torch.device(kind, gpu)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Networks that are made in the block are in float32, whatever torch's default type is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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


def require_compiler(device: torch.device) -> None:
    """InputError when nothing on this machine compiles for `device`."""
    on_gpu = device.type == "cuda"
    if not (has_triton() if on_gpu else any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++")))):
        what = "Triton and a GPU that it knows" if on_gpu else "a C++ compiler such as g++"
        raise InputError(
            f"compiling needs {what}, which is not there; install it or leave out --compile (or --speed compiled)"
        )


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread on a CPU while the block runs, whatever it was before: the bits of a sum depend on their number."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_workers(device: torch.device) -> int:
    """One single-threaded process per core on a CPU, where that is fastest; one process on a GPU.

    Ranks on one machine share its cores.
    """
    return max(1, (os.cpu_count() or 1) // ranks_on_this_machine()) if device.type == "cpu" else 1
