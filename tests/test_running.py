"""Blocks that are recomputed in the backward pass: the same bits in less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ard.bench.memory import TensorMemory, peak_bytes
from ard.history import HistoryAttention, HistoryMask
from ard.losses import regression_loss
from ard.models import running
from ard.models.running import block_runner
from ard.models.student import Student
from ard.models.transformer import Transformer
from ard.sampling import sample

LABEL = torch.tensor([1, 4, 2])


def loss_of(student: Student, trajectory: Tensor) -> Tensor:
    return regression_loss(student(trajectory[:, :-1], LABEL), trajectory[:, 1:]).mean()


def gradients(student: Student, trajectory: Tensor) -> list[Tensor | None]:
    student.zero_grad()
    loss_of(student, trajectory).backward()
    return [None if one.grad is None else one.grad.clone() for one in student.parameters()]


@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_recomputed_blocks_give_the_same_gradients_to_the_bit(
    make_student: Callable[..., Student],
    make_latents: Callable[..., Tensor],
    history: HistoryAttention,
    mask: HistoryMask,
) -> None:
    student, trajectory = make_student(num_steps=3, mask=mask, history=history), make_latents(3, 4)
    kept = gradients(student, trajectory)
    student.network.run_block = block_runner(recompute=True)
    recomputed = gradients(student, trajectory)
    for ours, theirs in zip(recomputed, kept, strict=True):
        assert (ours is None) is (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_a_gradient_counts_each_block_twice(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor]
) -> None:
    student, ran = make_student(num_steps=2), []
    for block in student.network.blocks:
        block.register_forward_pre_hook(lambda *_: ran.append(1))
    gradients(student, make_latents(3, 3))
    assert len(ran) == 3
    student.network.run_block = block_runner(recompute=True)
    gradients(student, make_latents(3, 3))
    assert len(ran) == 3 + 6


def test_sampling_with_its_cache_is_never_recomputed(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, noise = make_student(num_steps=3), make_latents(3)
    expected = sample(student, noise, label=LABEL)
    student.network.run_block = block_runner(recompute=True)
    monkeypatch.setattr(running, "checkpoint", lambda *_, **__: pytest.fail("a cache must not be written twice"))
    assert torch.equal(sample(student, noise, label=LABEL), expected)


def test_recomputing_needs_less_memory_the_more_the_deeper_the_network(
    make_network: Callable[..., Transformer], make_latents: Callable[..., Tensor]
) -> None:
    x, t = make_latents(3), torch.full((3,), 0.5, dtype=torch.float64)

    def peak(depth: int, *, recompute: bool) -> int:
        network = make_network(depth=depth)
        network.run_block = block_runner(recompute=recompute)
        loss: list[Tensor] = []
        forward = peak_bytes(lambda: loss.append(network(x, t, LABEL).square().sum()))
        loss[0].backward()
        return forward

    kept, recomputed = ([peak(depth, recompute=value) for depth in (4, 8)] for value in (False, True))
    assert recomputed[1] < kept[1] / 2
    assert recomputed[1] - recomputed[0] < (kept[1] - kept[0]) / 8, "a further block keeps its input only"


class TestMemory:
    """The count itself."""

    def test_what_is_held_at_the_same_time_counts(self) -> None:
        def run() -> None:
            for _ in range(5):
                first = torch.zeros(1000)  # 4 kB
                second = first + 1
                del first
                second = second.view(10, 100).add_(1)  # A view, in place: nothing new.

        assert 8000 <= peak_bytes(run) <= 12000

    def test_what_is_freed_is_forgotten(self) -> None:
        with TensorMemory() as memory:
            kept = torch.zeros(100)
            torch.zeros(1000).sum()
            assert memory.live == 400
            del kept
        assert (memory.live, memory.peak) == (0, 4404)

    def test_what_was_there_before_does_not_count(self) -> None:
        before: Any = torch.zeros(1000)
        assert peak_bytes(lambda: before.view(10, 100).mul_(2)) == 0
