"""How a network's blocks are run while it trains: as they are, or recomputed in the backward pass to save memory."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from ard.models.layers import Attend, Block, Condition
from ard.types import Tokens

RunBlock = Callable[[Block, Tokens, Condition, Attend, int], Tokens]
"""(block, tokens, condition, attend, index) to the block's tokens."""


def run_as_it_is(block: Block, tokens: Tokens, condition: Condition, attend: Attend, index: int) -> Tokens:
    """The block itself."""
    return block(tokens, condition, attend, index)


def recomputing(run: RunBlock) -> RunBlock:
    """`run` that keeps a block's inputs only and computes the rest again when gradients flow through it.

    Where no gradient is wanted nothing is kept anyway: sampling, with its cache, goes straight through.
    """

    def run_recomputing(block: Block, tokens: Tokens, condition: Condition, attend: Attend, index: int) -> Tokens:
        if not torch.is_grad_enabled():
            return run(block, tokens, condition, attend, index)
        # A block draws nothing at random, and to keep the generator's state would wait for the device.
        return checkpoint(run, block, tokens, condition, attend, index, use_reentrant=False, preserve_rng_state=False)

    return run_recomputing


def block_runner(*, recompute: bool) -> RunBlock:
    """The way to run blocks that the options ask for."""
    return recomputing(run_as_it_is) if recompute else run_as_it_is
