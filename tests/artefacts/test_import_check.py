"""ard teacher import --check and --vae: what is imported draws what published it draws, with its own autoencoder."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.teacher import load_teacher_card

Made = Callable[..., str]
# What diffusers says of its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SHAPE: dict[str, Any] = {"width": 24, "depth": 2, "num_heads": 2, "patch_size": 2, "latent_size": 8, "num_classes": 7}


@torch.no_grad()
def randomise(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        scale = 0.7 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def checkpoint(path: Path, *, channels: int = 4) -> Path:
    network = Transformer(TransformerConfig(**SHAPE, channels=channels))
    randomise(network)
    weights: dict[str, Tensor] = {"pos_embed": network.pos_embed.unsqueeze(0)}
    weights |= {name.replace("x_embedder.", "x_embedder.proj."): one for name, one in network.state_dict().items()}
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].view(24, channels, 2, 2)
    torch.save(weights, path)
    return path


def pipeline(folder: Path, scheduler: str, **fields: Any) -> Path:
    """A DiTPipeline's network and scheduler, as it saves them."""
    import diffusers

    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=7,
    )
    randomise(network)
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    network.save_pretrained(folder / "transformer")
    getattr(diffusers, scheduler)(**fields).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    return folder


def difference(told: str) -> float:
    return float(told.partition("relative difference ")[2].partition(",")[0])


@pytest.mark.parametrize("name", ["DiT", "SiT", "repa"])
def test_a_checkpoint_draws_what_its_own_equations_draw(tmp_path: Path, made: Made, name: str) -> None:
    source = checkpoint(tmp_path / f"{name}.pt")
    told = made("teacher", "import", source, "--num-heads", 2, "--check", "--out", tmp_path / "teacher")
    assert "check: 2 latents in 8 steps here and by its own equations: relative difference" in told
    assert difference(told) < 1e-5


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_folder_draws_what_diffusers_draws(tmp_path: Path, made: Made, scheduler: str) -> None:
    source = pipeline(tmp_path / "pipeline", scheduler)
    told = made("teacher", "import", source, "--check", "--out", tmp_path / "teacher")
    assert "here and by diffusers: relative difference" in told
    assert difference(told) < 1e-4
    told = made("teacher", "import", source / "transformer", "--check", "--out", tmp_path / "other")
    assert difference(told) < 1e-4


def test_what_is_not_taken_over_is_measured(tmp_path: Path, made: Made) -> None:
    source = pipeline(tmp_path / "pipeline", "PNDMScheduler")
    told = made("teacher", "import", source, "--check", "--out", tmp_path / "teacher")
    assert "has its steps of fourth order, not taken over" in told
    assert "further than rounding: see the notes above" in told
    assert difference(told) > 1e-3


def test_the_autoencoder_is_recorded_with_its_scale_and_shift(
    tmp_path: Path, made: Made, refused: Callable[..., str], make_autoencoder: Callable[..., Path]
) -> None:
    vae = make_autoencoder(blocks=2, latent_channels=3, scaling_factor=0.3, shift_factor=0.2)
    source, out = checkpoint(tmp_path / "DiT.pt", channels=3), tmp_path / "teacher"
    made("teacher", "import", source, "--num-heads", 2, "--vae", vae, "--out", out)
    imported = load_teacher_card(out).imported
    assert imported is not None
    assert (imported.scaling_factor, imported.shift_factor) == (0.3, 0.2)
    assert imported.vae is not None
    assert (out / imported.vae).resolve() == vae.resolve()
    other = checkpoint(tmp_path / "SiT.pt")
    line = refused("teacher", "import", other, "--num-heads", 2, "--vae", vae, "--out", tmp_path / "new")
    assert "has latents of 3 channels, and SiT.pt has 4" in line


def test_latents_of_three_channels_are_no_pixels(
    tmp_path: Path, made: Made, make_autoencoder: Callable[..., Path]
) -> None:
    vae = make_autoencoder(blocks=2, latent_channels=3)
    source, teacher, store, student = (tmp_path / name for name in ("DiT.pt", "teacher", "store", "student"))
    made("teacher", "import", checkpoint(source, channels=3), "--num-heads", 2, "--vae", vae, "--out", teacher)
    collecting = ["--num", 8, "--num-teacher-steps", 4, "--num-steps", 2, "--workers", 1, "--device", "cpu"]
    made("collect", "--teacher", teacher, "--out", store, *collecting)
    made("distill", "--trajectories", store, "--out", student, "--iterations", 2, "--batch-size", 4, "--device", "cpu")
    made("sample", "--student", student, "--seeds", "0-1", "--out", tmp_path / "grid.png", "--device", "cpu")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height >= 16  # Each latent makes two pixels.
