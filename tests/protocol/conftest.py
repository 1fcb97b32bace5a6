"""Tiny pictures, and the feature networks of the ADM protocol with random weights in the published formats."""

import contextlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ard.cli import run
from ard.diffusion.process import Diffusion
from ard.evaluation.features.inception import Inception, build_inception
from ard.evaluation.features.inception_network import InceptionNetwork
from ard.networks.transformer import TransformerConfig
from ard.student.folder import StudentCard, build_student, save_student
from ard.student.history import HistoryMask
from ard.student.student import StudentConfig
from ard.teacher.teacher import Guidance, Ode, TeacherRef

CPU = ["--device", "cpu"]


def make_pictures(count: int, *, size: int = 16, channels: int = 3, seed: int = 0) -> NDArray[Any]:
    """Smooth random pictures, each with its own colours: uint8, channels last."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (255 * smooth).round().byte().permute(0, 2, 3, 1).numpy()


def save_pngs(folder: Path, images: NDArray[Any]) -> Path:
    """A folder with a PNG per picture, named in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture(scope="session")
def pictures() -> Callable[..., NDArray[Any]]:
    return make_pictures


@pytest.fixture(scope="session")
def write_pngs() -> Callable[..., Path]:
    return save_pngs


@pytest.fixture(scope="session")
def inception_state() -> dict[str, Tensor]:
    """Weights under the published names whose signal neither dies nor explodes on its way."""
    generator, state = torch.Generator().manual_seed(0), {}
    with torch.device("meta"):
        shapes = InceptionNetwork().state_dict()
    for name, wanted in shapes.items():
        noise = torch.randn(wanted.shape, generator=generator)
        if not wanted.is_floating_point():
            state[name] = torch.zeros(wanted.shape, dtype=wanted.dtype)
        elif name == "fc.weight":
            state[name] = noise * 0.002  # So that the softmax is not a single class.
        elif wanted.ndim > 1:
            state[name] = noise * math.sqrt(2 / noise[0].numel())
        else:
            state[name] = 1 + 0.2 * noise.abs() if name.endswith(("bn.weight", "running_var")) else 0.3 * noise
    return state


@pytest.fixture(scope="session")
def inception_file(inception_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: a pickled state dict, here in the form that PyTorch writes today."""
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(inception_state, path)
    return path


@pytest.fixture(scope="session")
def inception(inception_state: dict[str, Tensor]) -> Inception:
    return Inception(build_inception(inception_state, Path("random.pth")))


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, 5 x 5 stored positions, as DINOv2 stores more than it uses at 224 pixels."""
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 56, "image_size": 280}
    return save_pretrained(transformers.Dinov2Model(transformers.Dinov2Config(**shape)), tmp_path_factory, "dinov2")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, text included, as it is published."""
    import transformers

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 112, "image_size": 336}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    both = {
        "vision_config": {**vision, "intermediate_size": 32, "projection_dim": 12},
        "text_config": {**text, **tokens},
    }
    model = transformers.CLIPModel(transformers.CLIPConfig(**both, projection_dim=12))
    return save_pretrained(model, tmp_path_factory, "clip")


@torch.no_grad()
def save_pretrained(model: Any, folders: pytest.TempPathFactory, name: str) -> Path:
    """A Hugging Face folder; every weight is random, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = folders.mktemp(name)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def student_folder(tmp_path: Path) -> Path:
    """A student of two steps whose network has just been made: its samples are noise-like, but a student's."""
    return make_student(tmp_path / "student", channels=1)


@pytest.fixture(scope="session")
def save_tiny_student() -> Callable[..., Path]:
    return make_student


def make_student(folder: Path, *, channels: int) -> Path:
    network = TransformerConfig(
        width=16, depth=2, num_heads=2, patch_size=4, latent_size=8, channels=channels, num_classes=5, mlp_ratio=2.0
    )
    diffusion = Diffusion()
    times = diffusion.teacher_times(4)
    card = StudentCard(
        student=StudentConfig(num_steps=2, mask=HistoryMask.CAUSAL),
        network=network,
        diffusion=diffusion,
        grid=(0, 2, 4),
        ode=Ode(times=times, solver=diffusion.default_solver, guidance=Guidance(cfg_scale=1.25, cfg_channels=-1)),
        teacher=TeacherRef(hash="0" * 16, path="../teacher", data="none"),
        recipe="none",
        iterations=0,
        seed=0,
        seconds=0.0,
    )
    torch.manual_seed(0)
    student = build_student(card)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    save_student(folder, card, dict(student.state_dict()))
    return folder


def run_here(*arguments: object) -> CompletedProcess[str]:
    """`ard` with these arguments, in this process."""
    texts = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(texts)
    return CompletedProcess(texts, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def call() -> Callable[..., CompletedProcess[str]]:
    return run_here


@pytest.fixture(scope="session")
def evaluated() -> Callable[..., str]:
    """`ard evaluate` with these options, which must succeed; what it printed."""

    def evaluate(*options: object) -> str:
        result = run_here("evaluate", *options, *CPU)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return evaluate


@pytest.fixture(scope="session")
def complaint() -> Callable[..., str]:
    """The one line with which `ard evaluate` refuses these options."""

    def refused(*options: object) -> str:
        result = run_here("evaluate", *options, *CPU)
        lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.strip() and "%|" not in line]
        assert result.returncode == 2, result.stdout
        assert len(lines) == 1, lines
        assert lines[0].startswith("ard: ")
        return lines[0]

    return refused
