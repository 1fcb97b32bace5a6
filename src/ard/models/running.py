"""How a network's blocks are run while it trains: as they are, compiled, recomputed in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ard.devices import require_compiler
from ard.errors import InputError
from ard.models.layers import Attend, Block, Condition
from ard.types import Tokens

RunBlock = Callable[[nn.Module, Tokens, Condition, Attend, int], Tokens]
"""(block, tokens, condition, attend, index) to the block's tokens."""


def run_as_it_is(block: nn.Module, tokens: Tokens, condition: Condition, attend: Attend, index: int) -> Tokens:
    """The block itself."""
    return block(tokens, condition, attend, index)


def recomputing(run: RunBlock) -> RunBlock:
    """`run` that keeps a block's inputs only and computes the rest again when gradients flow through it.

    Where no gradient is wanted nothing is kept anyway: sampling, with its cache, goes straight through.
    """

    def run_recomputing(block: nn.Module, tokens: Tokens, condition: Condition, attend: Attend, index: int) -> Tokens:
        if not torch.is_grad_enabled():
            return run(block, tokens, condition, attend, index)
        # A block draws nothing at random, and to keep the generator's state would wait for the device.
        return checkpoint(run, block, tokens, condition, attend, index, use_reentrant=False, preserve_rng_state=False)

    return run_recomputing


def compiled_run() -> RunBlock:
    """Blocks whose parts before and behind the attention are compiled, once for all blocks.

    The attention reads a history, which is no tensor, and is a fused kernel already. Where no gradient is wanted, as in
    sampling, the shapes are others: nothing is compiled for them.
    """
    enter = torch.compile(Block.enter, dynamic=False, options=_options())
    leave = torch.compile(Block.leave, dynamic=False, options=_options())

    def run_compiled(block: nn.Module, tokens: Tokens, condition: Condition, attend: Attend, index: int) -> Tokens:
        if not torch.is_grad_enabled():
            return run_as_it_is(block, tokens, condition, attend, index)
        if not isinstance(block, Block):
            raise InputError(f"--compile knows DiT's blocks, and {type(block).__name__} is none; leave it out")
        modulation = block.adaLN_modulation(condition).chunk(6, dim=-1)
        heads = enter(block, tokens, *modulation[:2])
        return leave(block, tokens, attend(index, *heads), *modulation[2:])

    return run_compiled


def block_runner(*, recompute: bool, compiled: bool, device: torch.device) -> RunBlock:
    """The way to run blocks that the options ask for; InputError when `device` cannot have it."""
    if compiled:
        require_compiler(device)
    run = compiled_run() if compiled else run_as_it_is
    return recomputing(run) if recompute else run


def _options() -> dict[str, Any]:
    """Without mix-order reduction, which gave wrong gradients of modulated LayerNorms (pytorch issue 193061)."""
    risky = "triton.mix_order_reduction"
    return {risky: False} if risky in torch._inductor.list_options() else {}  # noqa: SLF001 its public place
