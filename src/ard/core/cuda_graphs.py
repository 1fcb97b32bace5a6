"""The fastest attention kernel for a computation, found by trying; and a computation captured once as a CUDA graph."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Draw = Callable[..., Tensor]  # Tensors of fixed shapes to one of a fixed shape.

KERNELS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def with_fastest_attention(
    draw: Draw, *inputs: Tensor, kernels: Sequence[SDPBackend] = KERNELS, clock: Callable[[], float] = time.perf_counter
) -> Draw:
    """`draw` with the attention kernel that takes the least time for `inputs`; PyTorch's own choice if none can."""
    seconds: dict[SDPBackend, float] = {}
    for kernel in kernels:
        with suppress(RuntimeError), sdpa_kernel(kernel):  # Not every kernel can compute every shape.
            draw(*inputs)
            seconds[kernel] = min(_seconds(draw, inputs, clock) for _ in range(3))
    if not seconds:
        return draw
    fastest = min(seconds, key=lambda kernel: seconds[kernel])

    def drawn(*given: Tensor) -> Tensor:
        with sdpa_kernel(fastest):
            return draw(*given)

    return drawn


def captured(draw: Draw, *inputs: Tensor) -> Draw:
    """`draw` as one CUDA graph for inputs of these shapes: one launch, and not safe in several threads at once."""
    static = [given.clone() for given in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # Libraries set themselves up in the first runs, which a graph must not hold.
            draw(*static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = draw(*static)

    def replay(*given: Tensor) -> Tensor:
        for place, value in zip(static, given, strict=True):
            place.copy_(value)
        graph.replay()
        return output.clone()

    return replay


def _seconds(draw: Draw, inputs: Sequence[Tensor], clock: Callable[[], float]) -> float:
    _wait(inputs[0].device)
    started = clock()
    draw(*inputs)
    _wait(inputs[0].device)
    return clock() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
