"""The usual layout of history in training, for comparison: all steps as one row, a dense mask, adaLN per token.

The public re-implementations are laid out like this. The weights are our student's, and so are the outputs.
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from ard.core.types import Labels, States
from ard.networks.dit_layers import Block, FinalLayer
from ard.networks.transformer import vector_of
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.reference import block_mask
from ard.student.student import Student


def dense_forward(student: Student, states: States, label: Labels) -> States:
    """What `student(states, label)` gives for shared history and no heads per step."""
    config, network = student.config, student.network
    if config.history is HistoryAttention.GATED and config.mask is not HistoryMask.DIAGONAL:
        raise ValueError("a dense mask has one softmax: shared history only")
    batch, count = states.shape[:2]
    num_tokens, num_heads = network.config.num_tokens, network.config.num_heads
    steps, rows = torch.arange(count, device=states.device).repeat(batch), states.flatten(0, 1)
    tokens = network.embed(rows) + student.step_embedding[steps].unsqueeze(1)
    condition = vector_of(network.condition(student.diffusion.network_time(student.tau[steps]), label))
    tokens, condition = (
        tokens.unflatten(0, (batch, count)).flatten(1, 2),
        condition.repeat_interleave(num_tokens, 0).view(batch, count * num_tokens, -1),
    )
    masks = [block_mask(kind, S=count, P=num_tokens).to(states.device) for kind in (config.mask, HistoryMask.DIAGONAL)]
    for index, block in enumerate(network.blocks):
        assert isinstance(block, Block)  # noqa: S101 for the type checker
        tokens = _block(block, tokens, condition, masks[index >= config.history_blocks], num_heads)
    assert isinstance(network.final_layer, FinalLayer)  # noqa: S101 the same
    shift, scale = network.final_layer.adaLN_modulation(condition).chunk(2, dim=-1)
    values = network.final_layer.linear(_modulated(tokens, shift, scale))
    output = network.unpatchify(values.unflatten(1, (count, num_tokens)).flatten(0, 1)).to(states.dtype)
    return student.next_state(rows, output, student.tau[steps], student.tau[steps + 1]).unflatten(0, (batch, count))


def _block(block: Block, x: Tensor, condition: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """A block whose modulation is a linear layer on every token."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(condition).chunk(6, dim=-1)
    heads = block.attn.qkv(_modulated(x, shift_a, scale_a)).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = heads
    attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + gate_a * block.attn.proj(attended.transpose(1, 2).flatten(2))
    return x + gate_m * block.mlp(_modulated(x, shift_m, scale_m))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
