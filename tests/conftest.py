"""What the tests of the mathematics share: tiny networks in float64 whose every weight is random and seeded."""

import importlib
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ard.diffusion.process import Diffusion, DiffusionKind
from ard.diffusion.timegrid import uniform_indices
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.folder import StudentCard, build_student
from ard.student.student import Student, StudentConfig
from ard.teacher.teacher import Guidance, Ode, Teacher, TeacherRef

torch.set_num_threads(1)

SHAPE = {
    "width": 16,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "latent_size": 8,
    "channels": 2,
    "num_classes": 5,
    "mlp_ratio": 2.0,
}
NUM_TEACHER_STEPS = 60  # Divisible by the 1 to 5 steps of the students.


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Every parameter, also those that start at zero, from its own name: equal names have equal values."""
    for name, parameter in module.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


@pytest.fixture
def make_network() -> Callable[..., Transformer]:
    """make_network(**shape): a network in float64 whose blocks, modulations and output do something."""

    def make(**shape: Any) -> Transformer:
        network = Transformer(TransformerConfig(**{**SHAPE, **shape})).double().eval()
        randomise(network)
        return network

    return make


@pytest.fixture
def make_teacher(make_network: Callable[..., Transformer]) -> Callable[..., Teacher]:
    """make_teacher(kind, **shape): a teacher with a random network."""

    def make(kind: DiffusionKind = DiffusionKind.FLOW, **shape: Any) -> Teacher:
        return Teacher(make_network(**shape), Diffusion(kind=kind), "none", "0" * 16)

    return make


@pytest.fixture
def make_student(make_network: Callable[..., Transformer]) -> Callable[..., Student]:
    """make_student(kind, fresh=False, shape={}, **config): a student on a uniform grid; a fresh one copied its teacher.

    `shape` is what its network has of its own.
    """

    def make(
        kind: DiffusionKind = DiffusionKind.FLOW,
        *,
        fresh: bool = False,
        shape: dict[str, Any] | None = None,
        **config: Any,
    ) -> Student:
        settings = StudentConfig(**config)
        times = Diffusion(kind=kind).teacher_times(NUM_TEACHER_STEPS)
        tau = tuple(times[index] for index in uniform_indices(NUM_TEACHER_STEPS, settings.num_steps))
        student = Student(make_network(**(shape or {})), Diffusion(kind=kind), tau, settings).double().eval()
        if not fresh:
            randomise(student)
        return student

    return make


@pytest.fixture
def make_carded_student() -> Callable[..., tuple[Student, StudentCard]]:
    """make_carded_student(channels, **config): a random student in float32 of three steps, with its card."""

    def make(channels: int = 1, **config: Any) -> tuple[Student, StudentCard]:
        diffusion = Diffusion()
        times = diffusion.teacher_times(12)
        card = StudentCard(
            student=StudentConfig(**{"num_steps": 3, "history_blocks": 2, **config}),
            network=TransformerConfig(**{**SHAPE, "channels": channels}),
            diffusion=diffusion,
            grid=(0, 4, 8, 12),
            ode=Ode(times=times, solver=diffusion.default_solver, guidance=Guidance(cfg_scale=1.25, cfg_channels=-1)),
            teacher=TeacherRef(hash="0123456789abcdef", path="../teacher", data=None),
            recipe="fedcba9876543210",
            iterations=7,
            seed=1,
            seconds=2.0,
        )
        student = build_student(card).eval().requires_grad_(requires_grad=False)
        randomise(student)
        return student, replace(card, student=student.config)  # As it is saved: with everything filled in.

    return make


@pytest.fixture
def make_latents() -> Callable[..., torch.Tensor]:
    """make_latents(*leading): normal latents in float64, such as a batch of noises or of trajectories."""

    def make(*leading: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((*leading, 2, 8, 8), generator=generator, dtype=torch.float64)

    return make


@pytest.fixture(scope="session")
def make_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_autoencoder(**config): a folder with a tiny random AutoencoderKL, as diffusers saves it."""
    import diffusers

    @torch.no_grad()
    def make(*, blocks: int = 1, **config: Any) -> Path:
        torch.manual_seed(0)
        shape = {
            "block_out_channels": (8,) * blocks,
            "down_block_types": ("DownEncoderBlock2D",) * blocks,
            "up_block_types": ("UpDecoderBlock2D",) * blocks,
            "norm_num_groups": 4,
        }
        network = diffusers.AutoencoderKL(**shape, **config)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # Also those that start at zero.
        folder = tmp_path_factory.mktemp("vae")
        network.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def autoencoder_folder(make_autoencoder: Callable[..., Path]) -> Path:
    """An autoencoder of 4 channels that makes 2 x 2 pixels of a latent. Tests leave it as it is."""
    return make_autoencoder(blocks=2)


@pytest.fixture(scope="session")
def torch_fidelity() -> ModuleType:
    """The reference package of the metrics, which needs a torchvision that fits the torch that is installed.

    The extra `parity` installs it. Without it, closed forms and plain loops are what the metrics are compared with.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What others' code says about itself while it is imported.
            return importlib.import_module("torch_fidelity")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
