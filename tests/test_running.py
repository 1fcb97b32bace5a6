"""Blocks that are recomputed in the backward pass, to the same bits in less memory, and compiled blocks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ard.bench.memory import TensorMemory, peak_bytes
from ard.core import devices
from ard.core.errors import InputError
from ard.methods.losses import regression_loss
from ard.networks import block_execution as running
from ard.networks.block_execution import block_runner, compiled_run, recomputing, run_as_it_is
from ard.networks.transformer import Transformer
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import sample
from ard.student.student import Student

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
    student.network.run_block = recomputing(run_as_it_is)
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
    student.network.run_block = recomputing(run_as_it_is)
    gradients(student, make_latents(3, 3))
    assert len(ran) == 3 + 6


def test_sampling_with_its_cache_is_never_recomputed(
    make_student: Callable[..., Student], make_latents: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, noise = make_student(num_steps=3), make_latents(3)
    expected = sample(student, noise, condition=LABEL)
    student.network.run_block = recomputing(run_as_it_is)
    monkeypatch.setattr(running, "checkpoint", lambda *_, **__: pytest.fail("a cache must not be written twice"))
    assert torch.equal(sample(student, noise, condition=LABEL), expected)


def test_recomputing_needs_less_memory_the_more_the_deeper_the_network(
    make_network: Callable[..., Transformer], make_latents: Callable[..., Tensor]
) -> None:
    x, t = make_latents(3), torch.full((3,), 0.5, dtype=torch.float64)

    def peak(depth: int, *, recompute: bool) -> int:
        network = make_network(depth=depth)
        network.run_block = recomputing(run_as_it_is) if recompute else run_as_it_is
        loss: list[Tensor] = []
        forward = peak_bytes(lambda: loss.append(network(x, t, LABEL).square().sum()))
        loss[0].backward()
        return forward

    kept, recomputed = ([peak(depth, recompute=value) for depth in (4, 8)] for value in (False, True))
    assert recomputed[1] < kept[1] / 2
    assert recomputed[1] - recomputed[0] < (kept[1] - kept[0]) / 8, "a further block keeps its input only"


# Compares gradients in a process of its own, where no shapes are checked: BACKEND BATCH ...
COMPILED_SCRIPT = """
import json, sys
import torch
from ard.bench.contenders import random_network, random_student
from ard.methods.losses import regression_loss
from ard.networks.block_execution import compiled_run, recomputing, run_as_it_is
from ard.student.student import StudentConfig
from ard.networks.transformer import TransformerConfig

compile = torch.compile
if sys.argv[1] != "inductor":
    torch.compile = lambda part, **_: compile(part, dynamic=False, fullgraph=True, backend=sys.argv[1])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
shape = TransformerConfig(width=32, depth=2, num_heads=2, patch_size=4, latent_size=8, channels=2, num_classes=5)
student = random_student(random_network(shape, device), StudentConfig(num_steps=3)).requires_grad_(True)

def gradient(batch):
    trajectory = torch.randn(batch, 4, 2, 8, 8, generator=torch.Generator().manual_seed(batch)).to(device)
    student.zero_grad()
    x_hat = student(trajectory[:, :-1], torch.arange(batch, device=device))
    regression_loss(x_hat, trajectory[:, 1:]).mean().backward()
    return torch.cat([one.grad.flatten() for one in student.parameters() if one.grad is not None])

errors = []
for batch in map(int, sys.argv[2:]):
    student.network.run_block = run_as_it_is
    eager = gradient(batch)
    for run in (compiled_run(), recomputing(compiled_run())):
        student.network.run_block = run
        errors.append(float((gradient(batch) - eager).norm() / eager.norm()))
print(json.dumps({"errors": errors, "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}))
"""


def compared(folder: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    script = [sys.executable, "-c", COMPILED_SCRIPT, *words]
    result = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


class TestCompiled:
    """Compiled blocks against eager ones."""

    def test_two_graphs_serve_all_blocks_and_give_the_gradients_of_eager_ones(self, tmp_path: Path) -> None:
        found = compared(tmp_path, "aot_eager", "1", "2")
        assert max(found["errors"]) < 1e-6
        assert found["graphs"] == 2 * 2, "before and behind the attention, for either batch; none breaks"

    @pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
    def test_what_inductor_makes_has_the_gradients_of_eager_blocks_at_batch_1(self, tmp_path: Path) -> None:
        assert max(compared(tmp_path, "inductor", "1")["errors"]) < 1e-5

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("batch", ["1", "2"])
    def test_what_inductor_makes_for_a_gpu_has_the_gradients_of_eager_blocks(self, tmp_path: Path, batch: str) -> None:
        assert max(compared(tmp_path, "inductor", batch)["errors"]) < 1e-4

    def test_the_reduction_with_wrong_gradients_is_off_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []
        monkeypatch.setattr(torch, "compile", lambda half, **given: asked.append(given) or half)
        for known in (["triton.mix_order_reduction", "trace.enabled"], ["trace.enabled"]):
            monkeypatch.setattr(torch._inductor, "list_options", lambda known=known: known)
            compiled_run()
        off = {"triton.mix_order_reduction": False}
        assert [given["options"] for given in asked] == [off] * 4 + [{}] * 4, "two halves of two kinds of blocks"
        assert not any(given["dynamic"] for given in asked)

    def test_sampling_is_not_compiled(
        self, make_student: Callable[..., Student], make_latents: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        student, noise = make_student(num_steps=3), make_latents(3)
        expected = sample(student, noise, condition=LABEL)
        monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_: pytest.fail("this would compile"))
        student.network.run_block = compiled_run()
        assert torch.equal(sample(student, noise, condition=LABEL), expected)
        with pytest.raises(pytest.fail.Exception, match="this would compile"):
            gradients(student, make_latents(3, 4))

    @pytest.mark.parametrize(("device", "line"), [("cpu", r"a C\+\+ compiler"), ("cuda", "Triton")])
    def test_without_a_compiler_one_line_says_so(self, device: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
        monkeypatch.setattr(devices, "has_triton", lambda: False)
        with pytest.raises(InputError, match=line):
            block_runner(nn.ModuleList(), recompute=False, compiled=True, device=torch.device(device))


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
