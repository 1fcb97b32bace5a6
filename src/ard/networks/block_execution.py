"""How a network's blocks are run while it trains: as they are, compiled, recomputed in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ard.core.devices import require_compiler
from ard.core.errors import InputError
from ard.core.types import Tokens
from ard.networks.dit_layers import Attend, Block
from ard.networks.pixart_layers import Conditioning, TextBlock, TextConditioning

RunBlock = Callable[[nn.Module, Tokens, Conditioning, Attend, int], Tokens]
"""(block, tokens, conditioning, attend, index) to the block's tokens."""


def run_as_it_is(block: nn.Module, tokens: Tokens, conditioning: Conditioning, attend: Attend, index: int) -> Tokens:
    """The block itself."""
    return block(tokens, conditioning, attend, index)


def recomputing(run: RunBlock) -> RunBlock:
    """`run` that keeps a block's inputs only and computes the rest again when gradients flow through it.

    Where no gradient is wanted nothing is kept anyway: sampling, with its cache, goes straight through.
    """

    def run_recomputing(
        block: nn.Module, tokens: Tokens, conditioning: Conditioning, attend: Attend, index: int
    ) -> Tokens:
        if not torch.is_grad_enabled():
            return run(block, tokens, conditioning, attend, index)
        # A block draws nothing at random, and to keep the generator's state would wait for the device.
        return checkpoint(
            run, block, tokens, conditioning, attend, index, use_reentrant=False, preserve_rng_state=False
        )

    return run_recomputing


def compiled_run() -> RunBlock:
    """Blocks whose parts before and behind the attention are compiled, once for all blocks.

    The attention reads a history, which is no tensor, and is a fused kernel already. Where no gradient is wanted, as in
    sampling, the shapes are others: nothing is compiled for them.
    """
    halves: dict[type[nn.Module], tuple[Callable[..., Any], ...]] = {
        kind: (_compiled(kind.enter), _compiled(kind.leave)) for kind in (Block, TextBlock)
    }

    def run_compiled(
        block: nn.Module, tokens: Tokens, conditioning: Conditioning, attend: Attend, index: int
    ) -> Tokens:
        if not torch.is_grad_enabled():
            return run_as_it_is(block, tokens, conditioning, attend, index)
        modulation, text = _read(block, conditioning)
        enter, leave = halves[type(block)]
        return leave(block, tokens, attend(index, *enter(block, tokens, *modulation[:2])), *modulation[2:], **text)

    return run_compiled


def _compiled(half: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(half, dynamic=False, options=_options())


def _read(block: nn.Module, conditioning: Conditioning) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """A block's six modulations, and what else its second half reads."""
    if isinstance(block, TextBlock) and isinstance(conditioning, TextConditioning):
        text = block.cross_attn.keys(conditioning.text, conditioning.mask)
        return block.modulation(conditioning.modulation).chunk(6, dim=-1), {"text": text}
    if isinstance(block, Block):
        return block.adaLN_modulation(conditioning).chunk(6, dim=-1), {}
    raise TypeError(type(block))


def block_runner(blocks: nn.ModuleList, *, recompute: bool, compiled: bool, device: torch.device) -> RunBlock:
    """The way to run `blocks` that the options ask for; InputError when they or `device` cannot have it."""
    if compiled:
        require_compiler(device)
        _require_halves(blocks)
    run = compiled_run() if compiled else run_as_it_is
    return recomputing(run) if recompute else run


def _require_halves(blocks: nn.ModuleList) -> None:
    """InputError for blocks that have no parts before and behind the attention."""
    for block in blocks:
        if not isinstance(block, Block | TextBlock):
            kind = type(block).__name__
            raise InputError(f"--compile knows the blocks of DiT and PixArt, and {kind} is none; leave it out")


def _options() -> dict[str, Any]:
    """Without mix-order reduction, which gave wrong gradients of modulated LayerNorms (pytorch issue 193061)."""
    risky = "triton.mix_order_reduction"
    return {risky: False} if risky in torch._inductor.list_options() else {}  # noqa: SLF001 its public place
