"""What is timed: teachers and students by name, with random weights, all on the same network."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ard.analysis.flops import student_row, teacher_row
from ard.core.devices import autocast
from ard.core.errors import InputError
from ard.core.types import Labels, Latents
from ard.diffusion.process import Diffusion, Solver
from ard.networks.condition import Condition
from ard.networks.drawing import draw
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.fast_sampling import Draw, Speed, drawing
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import Guidance, Ode, Teacher, solve_pf_ode

NAMES = "teacher25, kd1, step4, ard4-n6, ard4-all, ard4-all-recomputed, ard4-n6-fast, ard4-n6-compiled"
PATTERN = re.compile(r"(?:(teacher)(\d+)|(?:(step|kd)(\d+)|ard(\d+)-(?:n(\d+)|all))(-recomputed|-fast|-compiled)?)")
DIFFUSION = Diffusion()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every contender starts from."""

    noise: Latents
    label: Labels


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that draws a batch of images."""

    name: str
    macs: int
    """Multiply-accumulates per image; what is recomputed is not counted."""
    run: Callable[[], Latents]
    equals: str | None = None
    """The contender whose images must be the same."""


def random_network(config: TransformerConfig, device: torch.device) -> Transformer:
    """A network of random weights that are not small, the modulations' too: no part of it is without effect."""
    network, generator = Transformer(config), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        draw(parameter, partial(nn.init.normal_, std=parameter.shape[-1] ** -0.5, generator=generator))
    return network.to(device).eval().requires_grad_(False)


def random_batch(config: TransformerConfig, size: int, device: torch.device) -> Batch:
    """Noise and labels for `size` images."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((size, config.channels, config.latent_size, config.latent_size), generator=generator)
    label = torch.randint(config.num_classes, (size,), generator=generator)
    return Batch(noise=noise.to(device), label=label.to(device))


def contenders(
    names: Sequence[str], network: Transformer, batch: Batch, *, history: HistoryAttention = HistoryAttention.SHARED
) -> list[Contender]:
    """The models called `names`; InputError for a name that none has."""
    return [_contender(name, network, batch, history) for name in names]


def random_student(network: Transformer, config: StudentConfig) -> Student:
    """A student of `network` with S even steps, whose own weights are random too."""
    tau = tuple(torch.linspace(1, 0, config.num_steps + 1).tolist())
    device = network.x_embedder.weight.device
    student, generator = Student(copy.copy(network), DIFFUSION, tau, config), torch.Generator().manual_seed(2)
    for parameter in (student.step_embedding, student.gates):
        draw(parameter, partial(nn.init.normal_, generator=generator))
    return student.to(device).eval()


def sample_recomputing(student: Student, noise: Latents, *, condition: Condition) -> Latents:
    """The student's image when every step computes all steps before it anew, instead of reading them from a cache."""
    states = noise.unsqueeze(1)
    for _ in range(student.config.num_steps):
        states = torch.cat([noise.unsqueeze(1), student(states, condition)], dim=1)
    return states[:, -1]


def require_equal(made: Sequence[Contender], *, tolerance: float) -> None:
    """InputError when a contender's images are not those of the one that it must equal."""
    by_name = {one.name: one for one in made}
    for one in made:
        if one.equals in by_name:
            images, wanted = one.run(), by_name[one.equals].run()
            if (off := float((images - wanted).abs().max() / wanted.abs().max())) > tolerance:
                raise InputError(f"{one.name} and {one.equals} draw different images, by {off:.1e}: nothing is timed")


def _contender(name: str, network: Transformer, batch: Batch, history: HistoryAttention) -> Contender:
    match = PATTERN.fullmatch(name)
    if match is None:
        raise InputError(f"--models: unknown model {name!r}; allowed: such as {NAMES}")
    teacher, teacher_steps, plain, plain_steps, steps, blocks, way = match.groups()
    if plain and way == "-recomputed":
        raise InputError(f"--models: {name} has no history to recompute; allowed: such as {NAMES}")
    if plain == "kd" and int(plain_steps) != 1:
        raise InputError(f"--models: {name} has {plain_steps} steps; knowledge distillation has 1: kd1")
    if int(teacher_steps or plain_steps or steps) < 1:
        raise InputError(f"--models: {name} has no steps; give at least 1")
    if teacher:
        return _teacher(name, int(teacher_steps), network, batch)
    config = StudentConfig(
        num_steps=int(plain_steps or steps),
        mask=HistoryMask.DIAGONAL if plain else HistoryMask.CAUSAL,
        history_blocks=0 if plain else int(blocks or network.config.depth),
        history=history,
    )
    draw, macs = _drawn(random_student(network, config), way), student_row(network.config, config).cost.total

    def run() -> Tensor:
        with torch.no_grad(), autocast(batch.noise.device):
            return draw(batch.noise, batch.label)

    return Contender(name=name, macs=macs, run=run, equals=name.removesuffix(way) if way else None)


def _drawn(student: Student, way: str | None) -> Draw:
    """How images are drawn: the reference, without its cache, or at another speed."""
    if way == "-recomputed":
        return lambda noise, condition: sample_recomputing(student, noise, condition=condition)
    return drawing(student, Speed(way.removeprefix("-")) if way else Speed.REFERENCE)


def _teacher(name: str, num_steps: int, network: Transformer, batch: Batch) -> Contender:
    """The guided teacher; both halves of the guidance run as one batch."""
    times = tuple(torch.linspace(1, 0, num_steps + 1).tolist())
    ode = Ode(times=times, solver=Solver.EULER, guidance=Guidance())
    teacher = Teacher(network, DIFFUSION, "none", "random")

    def run() -> Tensor:
        with autocast(batch.noise.device):
            return solve_pf_ode(teacher, batch.noise, batch.label, ode=ode, kept=(0, num_steps)).x_t[:, -1]

    return Contender(name=name, macs=teacher_row(network.config, ode).cost.total, run=run)
