"""What an update of a student holds in memory: its weights with their training state, and its activations, counted.

Counted are the tensors that autograd keeps for the backward pass, of DiT's block for one token and one channel:

    float32  the input and its normalised form, of attention and of the MLP                                       4
    matrix   input of qkv; q, k, v; attention; its projection; input of fc1; fc2; twice the MLP's inner width  8 + 2 m

Values of matrix products have 4 bytes, or 2 under bf16 autocast, where the weights are also copied in 2 bytes. A block
with history keeps S more attention outputs, and the keys and values that SHARED joins or the outputs that GATED adds;
one that reads a text the input, the queries and the output of its cross-attention, and the text's keys and values.
"""

import functools
from dataclasses import dataclass

import torch

from ard.analysis.flops import TEXT_TOKENS
from ard.diffusion.process import Diffusion
from ard.networks.registry import build_network
from ard.networks.transformer import TransformerConfig
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Student, StudentConfig

WIDE = 4  # Bytes of a float32.
STREAM = 4  # float32 values per token and channel in a block.
MATRICES = 8  # Values of matrix products per token and channel in a block, the MLP's inner ones apart.
TEXT_MATRICES = 3  # Values of matrix products per token and channel that reading a text adds to a block.
OUTSIDE = 3  # Values per token and channel outside of the blocks: the output layer's.
MODULATION = 9  # Values per row and channel of adaLN: six, its input, and two scales plus one.


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that an update of a student holds; weights and everything that training adds to them are float32."""

    parameters: int
    """How many."""
    weights: int
    gradients: int
    moments: int
    """AdamW's two."""
    average: int
    """The weights' moving average."""
    activations: int
    activations_checkpointed: int
    """The same where each block keeps its input only and is computed again in the backward pass."""

    @property
    def state(self) -> int:
        """What is there whatever the batch."""
        return self.weights + self.gradients + self.moments + self.average

    @property
    def total(self) -> int:
        """All, without activation checkpointing."""
        return self.state + self.activations

    @property
    def total_checkpointed(self) -> int:
        """All, with activation checkpointing."""
        return self.state + self.activations_checkpointed


def update_memory(
    network: TransformerConfig, student: StudentConfig, *, batch: int, bf16: bool, trained: int | None = None
) -> Memory:
    """What an update whose passes are of `batch` trajectories holds; N of `student` is filled in.

    `trained` parameters have gradients, moments and an average: adapters and what is trained beside them, or all.
    """
    parameters = num_parameters(network, student)
    weights, kept = WIDE * parameters, WIDE * (parameters if trained is None else trained)
    blocks = [
        block_bytes(network, student, batch=batch, bf16=bf16, history=block < student.history_blocks)
        for block in range(network.depth)
    ]
    rows = batch * student.num_steps * network.num_tokens * network.width
    rest = OUTSIDE * WIDE * rows + (parameters * 2 if bf16 else 0)
    return Memory(
        parameters=parameters,
        weights=weights,
        gradients=kept,
        moments=2 * kept,
        average=kept,
        activations=sum(blocks) + rest,
        activations_checkpointed=network.depth * WIDE * rows + max(blocks) + rest,
    )


def block_bytes(network: TransformerConfig, student: StudentConfig, *, batch: int, bf16: bool, history: bool) -> int:
    """What one block keeps for the backward pass."""
    matrix = 2 if bf16 else WIDE
    tokens, width, rows = network.num_tokens, network.width, batch * student.num_steps
    per_value = STREAM * WIDE + matrix * (MATRICES + 2 * network.mlp_ratio)
    statistics = WIDE * tokens * (4 + network.num_heads)  # Mean and deviation of two norms; each head's log-sum.
    own = rows * (int(tokens * width * per_value) + matrix * MODULATION * width + statistics)
    if network.text:
        own += rows * tokens * (TEXT_MATRICES * matrix * width + WIDE * network.num_heads)
        own += batch * TEXT_TOKENS * 2 * matrix * width  # Its keys and values, once per image.
    return own + (batch * tokens * width * matrix * history_values(student) if history else 0)


def history_values(student: StudentConfig) -> int:
    """Values per token and channel that a block with history keeps of a whole trajectory, beyond those without."""
    if student.mask is HistoryMask.DIAGONAL:
        return 0
    reads = [len(student.mask.readable(step)) for step in range(student.num_steps)]
    reading = [count for count in reads if count]
    match student.history:
        case HistoryAttention.SHARED:
            return student.num_steps + sum(2 * (count + 1) for count in reading)
        case HistoryAttention.GATED:
            return student.num_steps + len(reading)


@functools.cache
def num_parameters(network: TransformerConfig, student: StudentConfig) -> int:
    """The parameters of a student, counted on a network without values."""
    tau = tuple(map(float, range(student.num_steps, -1, -1)))
    with torch.device("meta"):
        return sum(one.numel() for one in Student(build_network(network), Diffusion(), tau, student).parameters())
