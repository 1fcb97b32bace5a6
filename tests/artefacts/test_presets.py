"""Every preset runs as its commands say: a narrow teacher of its kind, trajectories, a few updates, images."""

import functools
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ard.networks.registry import build_network
from ard.presets import DISTILL_PRESETS, Preset
from ard.presets.commands import collect_arguments, distill_arguments
from ard.presets.digits import DIGITS
from ard.student.folder import load_student
from ard.student.history import HistoryMask
from ard.student.sampling import sample
from ard.studies.stages import Stage
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard, noise_for_seeds, save_teacher
from ard.text.encoded import TextManifest, condition_of, encode_prompts, open_referred

Made = Callable[..., str]
QUICK = {*DIGITS, "imagenet256-ard"}
IMPORTED = Imported(
    format=SourceFormat.DIT,
    source="narrow.pt",
    cfg_channels=3,
    dropped=(),
    scaling_factor=None,
    vae=None,
    class_names=(),
)


def narrow_card(preset: Preset) -> TeacherCard:
    """The preset's teacher with all its blocks and channels, and little else."""
    network = preset.teacher.network
    narrow = replace(network, width=16, num_heads=2, mlp_ratio=1.0)
    if preset.teacher.command.startswith("ard teach "):
        trained = {"data": "digits", "iterations": 1, "seed": 0, "seconds": 0.0}
        return TeacherCard(network=narrow, diffusion=preset.teacher.diffusion, **trained)
    if network.text:
        small = replace(narrow, latent_size=4, text=replace(network.text, width=6))
    else:
        small = replace(narrow, latent_size=4, num_classes=5)
    return TeacherCard(network=small, diffusion=preset.teacher.diffusion, imported=IMPORTED)


def encode_words(folder: Path, width: int) -> None:
    """Prompts whose encodings are noise, a token per word."""
    manifest = TextManifest(encoder="0" * 16, source="none", width=width, max_tokens=3, prompts=("a", "b c", "a c"))
    generator = torch.Generator().manual_seed(0)
    encode_prompts(
        folder,
        manifest,
        lambda texts: [torch.randn(1 + len(text.split()), width, generator=generator).bfloat16() for text in texts],
        progress=lambda _: None,
    )


@pytest.fixture(scope="module")
def student_of(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Callable[[str], Path]:
    """student_of(name): the folder of a preset's student, made with what it needs; each thing once."""
    root = tmp_path_factory.mktemp("presets")

    @functools.cache
    def store_of(name: str) -> Path:
        preset = DISTILL_PRESETS[name]
        key = (preset.teacher, preset.collect)
        same = next(one for one, other in DISTILL_PRESETS.items() if (other.teacher, other.collect) == key)
        return collected(same)

    @functools.cache
    def collected(name: str) -> Path:
        out, card = root / f"store-{name}", narrow_card(DISTILL_PRESETS[name])
        torch.manual_seed(0)
        save_teacher(out / "teacher", card, build_network(card.network).state_dict())
        if card.network.text:
            encode_words(out / "text", card.network.text.width)
        words = collect_arguments(name, DISTILL_PRESETS[name])
        run(Stage("trajectories", words), out, "--num", 4, "--workers", 1)
        return out

    def run(stage: Stage, out: Path, *numbers: object) -> None:
        made(*stage.command(out), *numbers, "--device", "cpu")

    @functools.cache
    def student(name: str) -> Path:
        preset, out = DISTILL_PRESETS[name], store_of(name)
        if preset.start:
            student(preset.start)
        warmup = ["--adversarial-warmup", 1] if preset.adversarial else []
        numbers = ["--batch-size", 2, "--iterations", 2, *warmup]
        run(Stage(name, distill_arguments(name, preset)), out, *numbers)
        return out / name

    return student


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DISTILL_PRESETS]
)
def test_a_preset_goes_from_its_teacher_to_images(name: str, student_of: Callable[[str], Path]) -> None:
    preset = DISTILL_PRESETS[name]
    folder = student_of(name)
    student, card = load_student(folder, torch.device("cpu"))
    wanted = preset.whole_student
    assert (card.student.num_steps, card.student.mask, card.student.state) == (
        wanted.num_steps,
        wanted.mask,
        wanted.state,
    )
    assert card.grid == (preset.grid or card.grid)
    assert card.ode.num_teacher_steps == preset.collect.num_teacher_steps
    assert card.ode.guidance.cfg_scale == preset.collect.guidance.cfg_scale
    assert (card.loss != "R") == preset.adversarial
    network = card.network
    noise = noise_for_seeds(range(3), (network.channels, network.latent_size, network.latent_size))
    labels = torch.tensor([0, 1, 2])
    text = open_referred(card.text, folder) if card.text else None
    trajectory = sample(student, noise, condition=condition_of(text, labels))
    assert trajectory.shape == (3, wanted.num_steps + 1, *noise.shape[1:])
    assert trajectory.isfinite().all()
    assert (wanted.mask is HistoryMask.DIAGONAL) == (card.student.history_blocks == 0)


def test_the_commands_of_a_row_with_a_discriminator_name_its_start_and_what_is_real() -> None:
    words = distill_arguments("imagenet256-ard-gan", DISTILL_PRESETS["imagenet256-ard-gan"])
    assert shlex.join(words) == (
        "distill --preset imagenet256-ard-gan --resume-from OUT/imagenet256-ard --real teacher --trajectories "
        "OUT/trajectories"
    )
    assert "--real" not in distill_arguments("ard-gan", DISTILL_PRESETS["ard-gan"])
