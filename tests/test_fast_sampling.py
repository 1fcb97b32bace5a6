"""Fast sampling draws what the reference draws: for every kind of student, from threads, compiled and in bf16."""

import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from ard.core.cuda_graphs import captured, with_fastest_attention
from ard.diffusion.process import DiffusionKind
from ard.networks.dit_layers import attend_self
from ard.student.fast_sampling import FastSampler, Speed, drawing
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.packed_weights import with_packed_weights
from ard.student.sampling import sample
from ard.student.student import Prediction, StateKind, Student

MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]

LABEL = torch.tensor([4, 1])


def difference(student: Student, noise: Tensor, sampler: FastSampler) -> float:
    """The largest, as a part of the reference's largest value."""
    wanted = sample(student, noise, condition=LABEL)[:, -1]
    return float((sampler(noise, condition=LABEL) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_fast_is_the_reference_for_every_mask(
    mask: HistoryMask, history: HistoryAttention, num_steps: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=num_steps, mask=mask, history=history)
    assert difference(student, make_latents(2), FastSampler(student)) < 1e-12


@pytest.mark.parametrize("per_step_heads", [False, True])
@pytest.mark.parametrize("history_blocks", [0, 1, 3])
@pytest.mark.parametrize("state", StateKind)
@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("kind", DiffusionKind)
def test_fast_is_the_reference_for_every_design(
    kind: DiffusionKind,
    prediction: Prediction,
    state: StateKind,
    history_blocks: int,
    per_step_heads: bool,
    make_student: MakeStudent,
    make_latents: MakeLatents,
) -> None:
    design = {"prediction": prediction, "state": state, "per_step_heads": per_step_heads}
    student = make_student(kind, num_steps=3, history_blocks=history_blocks, **design)
    assert difference(student, make_latents(2), FastSampler(student)) < 1e-6  # Times and their solver are float32.


def test_learned_sigma_is_never_computed(
    make_network: Callable[..., Any], make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    given = make_student(num_steps=3)
    student = Student(make_network(learn_sigma=True), given.diffusion, tuple(given.tau.tolist()), given.config)
    sampler = FastSampler(student.double().eval())
    assert difference(student, make_latents(2), sampler) < 1e-12
    assert [len(step.bias) for step in sampler.steps] == [2 * 4 * 4] * 3
    assert student.network.final_layer.linear.out_features == 2 * 2 * 4 * 4


class Products(TorchDispatchMode):
    """Counts the matrix products by their number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.addmm.default:
            self.rows[len(args[1])] += 1
        if func is torch.ops.aten.mm.default:
            self.rows[len(args[0])] += 1
        return func(*args, **(kwargs or {}))


def test_all_modulations_are_one_product(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise = make_student(num_steps=4, history_blocks=2), make_latents(2)
    sampler = FastSampler(student)
    with Products() as fast:
        sampler(noise, condition=LABEL)
    with Products() as reference:
        sample(student, noise, condition=LABEL)
    tokens, depth = 2 * 4, 3  # The rows of two images.
    assert fast.rows == {tokens: 4 * (4 * depth + 2), 4 * 2: fast.rows[tokens]}
    assert reference.rows[2] == 4 * (depth + 1 + 2), "a modulation per block and step, the output's, and the time's two"


def test_float32_weights_are_packed_and_the_students_own_stay(
    make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student = make_student(num_steps=4).float()
    before = {name: (value.data_ptr(), value.clone()) for name, value in student.state_dict().items()}
    sampler = FastSampler(student)
    assert sampler.student is not student
    assert difference(student, make_latents(2).float(), sampler) < 1e-5
    assert {name: value.data_ptr() for name, value in student.state_dict().items()} == {
        name: place for name, (place, _) in before.items()
    }
    assert all(torch.equal(value, before[name][1]) for name, value in student.state_dict().items())


def test_packed_blocks_are_the_blocks(make_student: MakeStudent) -> None:
    student = make_student(num_steps=2).float()
    packed = with_packed_weights(student)
    tokens, condition = torch.randn(3, 5, 16), torch.randn(3, 16)
    with torch.no_grad():
        for own, other in zip(student.network.blocks, packed.network.blocks, strict=True):
            wanted = own(tokens, condition, attend_self, 0)
            assert not torch.equal(tokens, wanted)
            torch.testing.assert_close(other(tokens, condition, attend_self, 0), wanted, rtol=1e-5, atol=1e-5)
    assert packed.gates is student.gates
    assert with_packed_weights(student.double()) is student


def test_bf16_is_cast_once_and_close(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise = make_student(num_steps=4).float(), make_latents(2).float()
    sampler = FastSampler(student, dtype=torch.bfloat16)
    assert sampler(noise, condition=LABEL).dtype == torch.float32
    assert 1e-4 < difference(student, noise, sampler) < 5e-2
    assert {value.dtype for value in sampler.student.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in student.parameters()} == {torch.float32}


COMPILED = """
import functools
import torch
from ard.bench.contenders import random_batch, random_network, random_student
from ard.student.fast_sampling import FastSampler
from ard.student.history import HistoryAttention
from ard.student.student import StudentConfig
from ard.networks.transformer import named_config
from ard.student.sampling import sample

device = torch.device("cpu")
network = random_network(named_config("tiny/4", latent_size=8, channels=1, num_classes=10), device)
config = StudentConfig(num_steps=3, history_blocks=2, history=HistoryAttention.SHARED)
student, batch = random_student(network, config), random_batch(network.config, 2, device)
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # What is compiled, without a compiler's minute.
sampler = FastSampler(student, compiled=True)
wanted = sample(student, batch.noise, condition=batch.label)[:, -1]
drawn = sampler(batch.noise, condition=batch.label)
compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
print(float((drawn - wanted).abs().max() / wanted.abs().max()), compiled)
"""


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="without a compiler it is refused")
def test_compiled_is_the_reference_and_all_blocks_and_steps_share_two_graphs() -> None:
    """In a process of its own, where no shapes are checked: what checks them cannot be compiled."""
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True)
    off, compiled = result.stdout.split()
    assert float(off) < 1e-5
    assert int(compiled) == 2


def test_threads_share_a_sampler(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    sampler = FastSampler(make_student(num_steps=4))
    noises = [make_latents(2, seed=seed) for seed in range(8)]
    wanted, drawn = [sampler(noise, condition=LABEL) for noise in noises], dict[int, Tensor]()
    threads = [
        threading.Thread(target=lambda i=i: drawn.update({i: sampler(noises[i], condition=LABEL)})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(drawn[index], image) for index, image in enumerate(wanted))


def test_an_image_does_not_depend_on_its_batch(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    sampler, noise = FastSampler(make_student(num_steps=4)), make_latents(2)
    both = sampler(noise, condition=LABEL)
    alone = torch.cat([sampler(noise[i : i + 1], condition=LABEL[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alone, both, rtol=1e-12, atol=1e-12)


def test_the_speeds_draw_the_same(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise = make_student(num_steps=2).float(), make_latents(2).float()
    reference, fast = (drawing(student, speed)(noise, LABEL) for speed in (Speed.REFERENCE, Speed.FAST))
    assert torch.equal(reference, sample(student, noise, condition=LABEL)[:, -1])
    assert not torch.equal(fast, noise)
    torch.testing.assert_close(fast, reference, rtol=1e-5, atol=1e-5)


# The attention kernel.


def attention(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("fastest", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_the_kernel_with_the_least_time_is_taken(fastest: SDPBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from ard.core import cuda_graphs as graphs

    entered, clock = [], [0.0]
    original = graphs.sdpa_kernel
    monkeypatch.setattr(graphs, "sdpa_kernel", lambda kernel: entered.append(kernel) or original(kernel))

    def run(x: Tensor) -> Tensor:
        clock[0] += 1 if entered[-1] is fastest else 2
        return attention(x)

    kernels = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]
    x = torch.randn(1, 2, 16, 8)
    chosen = with_fastest_attention(run, x, kernels=kernels, clock=lambda: clock[0])
    torch.testing.assert_close(chosen(x), run(x))
    assert entered == [*kernels, fastest]


def test_a_kernel_that_cannot_is_left_out() -> None:
    x = torch.randn(1, 2, 16, 8)
    chosen = with_fastest_attention(attention, x, kernels=[SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH])
    torch.testing.assert_close(chosen(x), attention(x))
    assert with_fastest_attention(attention, x, kernels=[SDPBackend.CUDNN_ATTENTION]) is attention


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_captured_graph_is_what_it_was_captured_from(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise, label = make_student(num_steps=4).float().cuda(), make_latents(2).float().cuda(), LABEL.cuda()
    sampler = FastSampler(student)
    wanted = sample(student, noise, condition=label)[:, -1]
    for _ in range(2):
        torch.testing.assert_close(sampler(noise, condition=label), wanted, rtol=1e-4, atol=1e-4)
    doubled = captured(lambda x: 2 * x, noise)
    torch.testing.assert_close(doubled(noise + 1), 2 * noise + 2)
