"""The autoencoder that decodes latents: found, or refused before any work, by every command alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ard.core.errors import InputError
from ard.core.files import read_json, write_json
from ard.networks.autoencoder import load_autoencoder
from ard.student.folder import load_card, load_student, save_student
from ard.teacher.teacher import load_teacher_card

Made = Callable[..., str]
MakeAutoencoder = Callable[..., Path]
LatentStudent = Callable[..., Path]
CPU = torch.device("cpu")
DRAWING = {
    "sample": ["sample", "--seeds", "0-1", "--student"],
    "evaluate": ["evaluate", "--metrics", "is", "--num", 2, "--dry-run", "--samples"],
    "export": ["export", "--samples", 0, "--student"],
}
"""The commands that decode, up to the student."""


def drawing(command: str, student: Path, out: Path) -> list[object]:
    words: list[object] = [*DRAWING[command], student, "--device", "cpu"]
    if command == "evaluate":
        (out.parent / "inception.pth").touch()
        return [*words, "--inception", out.parent / "inception.pth"]
    return [*words, "--out", out]


@pytest.fixture
def pipeline_folder(autoencoder_folder: Path, tmp_path: Path) -> Path:
    """A whole pipeline's folder, of which the autoencoder is there."""
    shutil.copytree(autoencoder_folder, tmp_path / "pipeline/vae")
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    return tmp_path / "pipeline"


@pytest.mark.parametrize("command", DRAWING)
class TestCommands:
    """ard sample, evaluate --samples and export."""

    @pytest.mark.parametrize(
        ("config", "told"),
        [
            ({"scaling_factor": 0.13025}, "scales its latents by 0.13025, the teacher's by 0.18215; decode those of"),
            ({"shift_factor": 0.1}, "by 0.18215 after a shift by 0.1, the teacher's by 0.18215; decode those of"),
            ({"latent_channels": 16}, "decodes latents of 16 channels, and"),
        ],
        ids=["scale", "shift", "channels"],
    )
    def test_another_autoencoder_than_the_teachers_is_refused(
        self,
        command: str,
        config: dict[str, Any],
        told: str,
        latent_student: LatentStudent,
        make_autoencoder: MakeAutoencoder,
        tmp_path: Path,
        complaint: Made,
    ) -> None:
        words = drawing(command, latent_student(None), tmp_path / "out")
        assert told in complaint(*words, "--vae", make_autoencoder(blocks=2, **config))
        assert not (tmp_path / "out").exists()

    def test_a_student_far_from_its_teacher_knows_the_scale(
        self,
        command: str,
        latent_student: LatentStudent,
        make_autoencoder: MakeAutoencoder,
        tmp_path: Path,
        complaint: Made,
    ) -> None:
        student = latent_student(None)
        card = load_card(student)
        scale = load_teacher_card(tmp_path / "teacher").imported.scale  # type: ignore[union-attr]
        weights = load_student(student, CPU)[0].state_dict()
        save_student(student, type(card)(**{**vars(card), "latents": scale}), weights)
        shutil.rmtree(tmp_path / "teacher")
        words = drawing(command, student, tmp_path / "out")
        assert "makes latents of 4 channels, no pictures; name the folder" in complaint(*words)
        line = complaint(*words, "--vae", make_autoencoder(blocks=2, scaling_factor=0.5))
        assert "scales its latents by 0.5, the teacher's by 0.18215" in line

    def test_the_autoencoder_that_the_teacher_came_with_is_found(
        self, command: str, latent_student: LatentStudent, autoencoder_folder: Path, tmp_path: Path, made: Made
    ) -> None:
        made(*drawing(command, latent_student(autoencoder_folder), tmp_path / "out"))

    def test_it_is_said_when_that_one_is_gone(
        self,
        command: str,
        latent_student: LatentStudent,
        autoencoder_folder: Path,
        tmp_path: Path,
        complaint: Made,
    ) -> None:
        student = latent_student(autoencoder_folder)
        shutil.rmtree(tmp_path / autoencoder_folder.name)
        line = complaint(*drawing(command, student, tmp_path / "out"))
        assert f"is gone from {tmp_path / autoencoder_folder.name}; name it: --vae" in line

    def test_a_whole_pipelines_folder_is_taken(
        self, command: str, latent_student: LatentStudent, pipeline_folder: Path, tmp_path: Path, made: Made
    ) -> None:
        made(*drawing(command, latent_student(None), tmp_path / "out"), "--vae", pipeline_folder)

    def test_latents_of_three_channels_are_not_taken_for_pictures(
        self, command: str, latent_student: LatentStudent, tmp_path: Path, complaint: Made
    ) -> None:
        line = complaint(*drawing(command, latent_student(None, channels=3), tmp_path / "out"))
        assert "makes latents of 3 channels, no pictures" in line


def test_a_recorded_autoencoder_draws_the_pictures_of_the_same_one_given(
    latent_student: LatentStudent, autoencoder_folder: Path, pipeline_folder: Path, tmp_path: Path, made: Made
) -> None:
    student, found = latent_student(autoencoder_folder), []
    for name, options in {
        "known": [],
        "given": ["--vae", autoencoder_folder],
        "whole": ["--vae", pipeline_folder],
    }.items():
        made(*drawing("sample", student, tmp_path / f"{name}.npz"), *options)
        with np.load(tmp_path / f"{name}.npz") as arrays:
            found.append(arrays["arr_0"])
    assert found[0].shape == (2, 16, 16, 3)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


SAVED: dict[str, dict[str, Any]] = {
    "a variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "20KB"},
    "shards of a variant": {"max_shard_size": "20KB", "variant": "fp16"},
    "pickled": {"safe_serialization": False},
    "pickled shards": {"safe_serialization": False, "max_shard_size": "20KB"},
    "pickled shards of a variant": {"safe_serialization": False, "max_shard_size": "20KB", "variant": "fp16"},
}


@pytest.mark.parametrize("how", SAVED)
def test_an_autoencoder_is_read_however_diffusers_saved_it(how: str, autoencoder_folder: Path, tmp_path: Path) -> None:
    whole = load_autoencoder(autoencoder_folder, CPU)
    whole.network.save_pretrained(tmp_path / "vae", **SAVED[how])
    again = load_autoencoder(tmp_path / "vae", CPU)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.decode(latents), whole.decode(latents))
    assert len(again.card.weights.paths) == (4 if "shards" in how else 1)
    assert again.card.sha256 != whole.card.sha256 or how == "a variant"


def test_no_code_in_pickled_weights_is_run(autoencoder_folder: Path, tmp_path: Path) -> None:
    class Touching:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    shutil.copytree(autoencoder_folder, tmp_path / "vae")
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"decoder.conv_in.bias": Touching()}, tmp_path / "vae/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="vae cannot be loaded: "):
        load_autoencoder(tmp_path / "vae", CPU)
    assert not (tmp_path / "run").exists()


DAMAGES: dict[str, tuple[Any, ...]] = {
    "block_out_channels": ([], [0, 8], [8, 10**30], 3, "8", [[8], 8], [8] * 40),
    "layers_per_block": (0, -1, 10**30, "1", 1.5),
    "norm_num_groups": (0, -4, 10**30, [4]),
    "latent_channels": (0, -4, 10**30, 4.5, None),
    "in_channels": (0, 10**30, "3"),
    "down_block_types": ([], "DownEncoderBlock2D", [1, 2], ["a"] * 3),
    "up_block_types": ([], ["__import__", "x"], [None, None]),
    "scaling_factor": (0, -1, "x", [1], float("nan"), float("inf")),
    "shift_factor": ("x", [1], float("nan"), float("inf")),
    "act_fn": (3, "nothing", [], None),
    "sample_size": ("x", [32, 32], {}),
    "latents_mean": ([0.0], "x"),
    "_class_name": (None, 3, [], {}),
}


@pytest.mark.parametrize("field", DAMAGES)
def test_a_damaged_field_of_an_autoencoder_is_told_in_one_line(
    field: str, autoencoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(autoencoder_folder, tmp_path / "vae"))
    whole = read_json(folder / "config.json")
    for value in DAMAGES[field]:
        write_json(folder / "config.json", {**whole, field: value})
        with pytest.raises(
            ValueError, match=r"vae.*config\.json|vae cannot be loaded|vae is no autoencoder|vae lacks"
        ) as refusal:
            load_autoencoder(folder, CPU)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 600
    assert capfd.readouterr().err == ""


def test_an_index_that_lies_is_told(autoencoder_folder: Path, tmp_path: Path) -> None:
    network = diffusers.AutoencoderKL.from_pretrained(autoencoder_folder, low_cpu_mem_usage=False)
    network.save_pretrained(tmp_path / "vae", max_shard_size="20KB")
    index = tmp_path / "vae/diffusion_pytorch_model.safetensors.index.json"
    whole = read_json(index)
    for weight_map, told in (
        (None, "weight_map names a file beside it"),
        ({}, "weight_map names a file beside it"),
        ([], "weight_map names a file beside it"),
        ({"a": 3}, "weight_map names a file beside it"),
        ({"a": "../../etc/passwd"}, "weight_map names a file beside it"),
        (
            {"a": "missing.safetensors"},
            "lacks missing.safetensors, which diffusion_pytorch_model.safetensors.index.json names",
        ),
    ):
        write_json(index, {**whole, "weight_map": weight_map})
        with pytest.raises(InputError, match=told):
            load_autoencoder(tmp_path / "vae", CPU)
