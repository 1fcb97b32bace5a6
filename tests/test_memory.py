"""Memory of an update: the closed form against the bytes that autograd really keeps."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ard.analysis.flops import TEXT_TOKENS
from ard.analysis.memory import block_bytes, history_values, num_parameters, update_memory
from ard.diffusion.process import Diffusion
from ard.networks.condition import Condition, Prompts
from ard.networks.transformer import TextConfig, Transformer, TransformerConfig
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Student, StudentConfig

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask
NETWORK = TransformerConfig(
    width=64, depth=4, num_heads=2, patch_size=2, latent_size=16, channels=1, num_classes=5, mlp_ratio=3.0
)
BATCH = 3
LABELS = torch.tensor([0, 1, 2])


def student_of(config: StudentConfig, network: TransformerConfig = NETWORK) -> Student:
    tau = tuple(1 - step / config.num_steps for step in range(config.num_steps + 1))
    torch.manual_seed(0)
    return Student(Transformer(network), Diffusion(), tau, config)


@contextmanager
def counted(student: nn.Module) -> Iterator[dict[int, int]]:
    """The storages that autograd keeps in a forward pass, by address, in bytes; the weights and constants apart."""
    own = {one.untyped_storage().data_ptr() for one in (*student.parameters(), *student.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # So that no other storage gets its address.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def kept_bytes(student: Student, *, bf16: bool, condition: Condition = LABELS) -> int:
    """What a forward pass over all steps of BATCH trajectories keeps."""
    states = torch.randn(BATCH, student.config.num_steps, 1, 16, 16)
    with counted(student) as kept, torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        student(states, condition)
    return sum(kept.values())


SETTINGS = [
    StudentConfig(num_steps=1, mask=DIAGONAL, history_blocks=0),
    StudentConfig(num_steps=4, mask=DIAGONAL, history_blocks=0),
    *(
        StudentConfig(num_steps=num_steps, mask=mask, history_blocks=3, history=history)
        for history in HistoryAttention
        for num_steps, mask in ((2, CAUSAL), (4, WINDOW), (4, ANCHOR), (4, CAUSAL))
    ),
]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("config", SETTINGS, ids=lambda one: f"{one.history}-{one.mask}-{one.num_steps}")
def test_the_activations_are_what_autograd_keeps(config: StudentConfig, bf16: bool) -> None:
    student = student_of(config)
    claimed = update_memory(NETWORK, student.config, batch=BATCH, bf16=bf16).activations
    assert claimed == pytest.approx(kept_bytes(student, bf16=bf16), rel=0.03 if bf16 else 0.01)


def test_a_block_that_reads_a_text_keeps_its_cross_attention() -> None:
    config = StudentConfig(num_steps=3, mask=DIAGONAL, history_blocks=0)
    network = dataclasses.replace(NETWORK, num_classes=0, text=TextConfig(width=8))
    students = [student_of(config, dataclasses.replace(network, depth=depth)) for depth in (2, 3)]
    prompts = Prompts(
        tokens=torch.randn(BATCH, TEXT_TOKENS, 8),
        mask=torch.ones(BATCH, TEXT_TOKENS, dtype=torch.bool),
        null=torch.randn(2, 8),
    )
    shallow, deep = (kept_bytes(student, bf16=False, condition=prompts) for student in students)
    claimed = block_bytes(network, config, batch=BATCH, bf16=False, history=False)
    assert deep - shallow == pytest.approx(claimed, rel=0.02)


def test_a_block_keeps_to_the_byte_what_is_claimed() -> None:
    config = StudentConfig(num_steps=4, mask=DIAGONAL, history_blocks=0)
    student, shallow = student_of(config), student_of(config)
    del shallow.network.blocks[-1]
    claimed = block_bytes(NETWORK, config, batch=BATCH, bf16=False, history=False)
    assert kept_bytes(student, bf16=False) - kept_bytes(shallow, bf16=False) == claimed


@pytest.mark.parametrize("history", HistoryAttention)
def test_a_block_with_history_keeps_exactly_what_is_claimed_beyond_one_without(history: HistoryAttention) -> None:
    config = StudentConfig(num_steps=4, mask=CAUSAL, history=history, history_blocks=0)
    without = kept_bytes(student_of(config), bf16=False)
    student = student_of(StudentConfig(num_steps=4, mask=CAUSAL, history=history, history_blocks=1))
    values = 4 * BATCH * NETWORK.num_tokens
    log_sums = 3 * values * NETWORK.num_heads if history is HistoryAttention.GATED else 0
    assert kept_bytes(student, bf16=False) - without == values * NETWORK.width * history_values(config) + log_sums


def test_a_checkpointed_block_keeps_its_input_until_it_is_computed_again() -> None:
    student = student_of(StudentConfig(num_steps=4, mask=CAUSAL, history_blocks=2))
    plain = update_memory(NETWORK, student.config, batch=BATCH, bf16=False)
    for block in student.network.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    one_block = block_bytes(NETWORK, student.config, batch=BATCH, bf16=False, history=True)
    assert kept_bytes(student, bf16=False) == pytest.approx(plain.activations_checkpointed - one_block, rel=0.05)


def test_parameters_are_counted_without_a_network_in_memory() -> None:
    config = StudentConfig(num_steps=4, mask=CAUSAL, history_blocks=2, per_step_heads=True)
    assert num_parameters(NETWORK, config) == sum(one.numel() for one in student_of(config).parameters())


def test_an_update_holds_twenty_bytes_per_parameter_besides() -> None:
    memory = update_memory(NETWORK, SETTINGS[0], batch=1, bf16=False)
    assert memory.state == 20 * memory.parameters
    assert memory.total - memory.activations == memory.total_checkpointed - memory.activations_checkpointed
