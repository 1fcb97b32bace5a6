"""Students of latents: their pictures are their autoencoder's, in ard sample and in ard evaluate alike."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ard import cli
from ard.evaluation.images import LabelSampling, open_student
from ard.images.pictures import to_pixels
from ard.student.folder import load_student
from ard.student.sampling import sample
from ard.studies.paper.imagenet import ImagenetConfig, stages
from ard.teacher.teacher import noise_for_seeds

CPU = torch.device("cpu")
SIDE = 16  # Latents of 8 x 8, and 2 x 2 pixels for each.
Call = Callable[..., CompletedProcess[str]]
Complaint = Callable[..., str]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, save_tiny_student: Callable[..., Path]) -> Path:
    return save_tiny_student(tmp_path_factory.mktemp("latent") / "student", channels=4)


@pytest.fixture
def drawn(call: Call) -> Callable[..., CompletedProcess[str]]:
    """`ard sample` on the CPU."""
    return lambda *options: call("sample", *options, "--device", "cpu")


@torch.no_grad()
def pictures_by_hand(student: Path, autoencoder: Path, seeds: range) -> NDArray[Any]:
    """The pictures of seeds that are also labels, by diffusers' own decoder."""
    network, _ = load_student(student, CPU)
    latents = sample(network, noise_for_seeds(seeds, (4, 8, 8)), condition=torch.tensor(seeds))[:, -1]
    decoder = diffusers.AutoencoderKL.from_pretrained(autoencoder, low_cpu_mem_usage=False)
    return to_pixels(decoder.decode(latents / decoder.config.scaling_factor).sample).numpy()


def mode_and_size(path: Path) -> tuple[str, tuple[int, int]]:
    with Image.open(path) as picture:
        return picture.mode, picture.size


class TestSample:
    """ard sample --vae."""

    def test_arrays_hold_the_decoded_pictures(
        self, student: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        options = ["--student", student, "--vae", autoencoder_folder, "--seeds", "0-4", "--out", tmp_path / "s.npz"]
        assert drawn(*options).returncode == 0
        with np.load(tmp_path / "s.npz") as arrays:
            pictures = arrays["arr_0"]
        assert pictures.shape == (5, SIDE, SIDE, 3)
        assert np.array_equal(pictures, pictures_by_hand(student, autoencoder_folder, range(5)))
        assert len(np.unique(pictures)) > 10

    def test_pictures_do_not_depend_on_the_batch(
        self, student: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        found = []
        for size in (2, 5):
            out = tmp_path / f"{size}.npz"
            drawn(
                "--student", student, "--vae", autoencoder_folder, "--seeds", "0-4", "--batch-size", size, "--out", out
            )
            with np.load(out) as arrays:
                found.append(arrays["arr_0"].astype(int))
        assert abs(found[0] - found[1]).max() <= 1  # A value next to the border of two greys may fall to either side.

    def test_folders_and_sheets_are_in_colour_and_of_full_size(
        self, student: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        options = ["--student", student, "--vae", autoencoder_folder, "--seeds", "0-1"]
        assert drawn(*options, "--out", tmp_path / "pictures").returncode == 0
        assert drawn(*options, "--out", tmp_path / "sheet.png").returncode == 0
        grid = drawn(*options, "--grid", "--teacher-rows", "none", "--out", tmp_path / "grid.png")
        assert grid.returncode == 0, grid.stderr
        assert [mode_and_size(path) for path in (tmp_path / "pictures").glob("*.png")] == [("RGB", (SIDE, SIDE))] * 2
        assert all(mode_and_size(tmp_path / name)[0] == "RGB" for name in ("sheet.png", "grid.png"))

    @pytest.mark.parametrize("out", ["sheet.png", "samples.npz", "folder"])
    def test_latents_alone_are_refused_whatever_is_to_be_written(
        self, student: Path, drawn: Call, tmp_path: Path, out: str
    ) -> None:
        result = drawn("--student", student, "--out", tmp_path / out)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "makes latents of 4 channels, no pictures; name the folder of the autoencoder" in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_student_of_pictures_has_no_latents_to_decode(
        self, student_folder: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        result = drawn("--student", student_folder, "--vae", autoencoder_folder, "--out", tmp_path / "s.png")
        assert result.returncode == 2
        assert "decodes latents of 4 channels, and " in result.stderr
        assert not (tmp_path / "s.png").exists()

    def test_a_dry_run_names_the_autoencoder(
        self, student: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        result = drawn("--student", student, "--vae", autoencoder_folder, "--out", tmp_path / "s.png", "--dry-run")
        assert json.loads(result.stdout)["vae"] == str(autoencoder_folder)


class TestEvaluate:
    """ard evaluate --samples STUDENT --vae."""

    def test_the_pictures_are_those_of_ard_sample(
        self, student: Path, autoencoder_folder: Path, drawn: Call, tmp_path: Path
    ) -> None:
        drawn("--student", student, "--vae", autoencoder_folder, "--seeds", "3-9", "--out", tmp_path / "s.npz")
        balanced = LabelSampling.BALANCED
        images = open_student(student, seeds=range(3, 10), labels=balanced, vae=autoencoder_folder, device=CPU)
        assert (images.count, images.height, images.width) == (7, SIDE, SIDE)
        with np.load(tmp_path / "s.npz") as arrays:
            assert np.array_equal(torch.cat(list(images.batches(range(7), 7))).numpy(), arrays["arr_0"])

    def test_the_result_says_which_autoencoder(
        self,
        student: Path,
        autoencoder_folder: Path,
        inception_file: Path,
        evaluated: Callable[..., str],
        tmp_path: Path,
    ) -> None:
        options = ["--samples", student, "--vae", autoencoder_folder, "--num", 4, "--metrics", "is"]
        evaluated(*options, "--inception", inception_file, "--json", tmp_path / "out.json")
        samples = json.loads((tmp_path / "out.json").read_text())["samples"]
        weights = (autoencoder_folder / "diffusion_pytorch_model.safetensors").read_bytes()
        assert (samples["kind"], samples["height"], samples["greyscale"]) == ("student", SIDE, 0)
        assert samples["autoencoder"] == {
            "weights": str(autoencoder_folder),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "scaling_factor": 0.18215,
            "shift_factor": 0.0,
            "dtype": "float32, no TF32",
        }

    def test_a_student_of_pictures_has_none(self, student_folder: Path) -> None:
        facts = open_student(student_folder, seeds=[0], labels=LabelSampling.RANDOM, device=CPU).facts
        assert facts["autoencoder"] is None

    def test_a_dry_run_finds_what_is_missing(
        self,
        student: Path,
        autoencoder_folder: Path,
        complaint: Complaint,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        options = ["--samples", student, "--metrics", "is", "--inception", "i.pth", "--dry-run"]
        assert "latents of 4 channels, no pictures" in complaint(*options)
        assert "is no autoencoder: it has no config.json" in complaint(*options, "--vae", tmp_path)
        monkeypatch.setitem(sys.modules, "diffusers", None)
        assert "needs the package diffusers" in complaint(*options, "--vae", autoencoder_folder)

    def test_pictures_that_are_there_need_no_decoding(
        self,
        autoencoder_folder: Path,
        complaint: Complaint,
        pictures: Callable[..., NDArray[Any]],
        write_pngs: Callable[..., Path],
        tmp_path: Path,
    ) -> None:
        folder = write_pngs(tmp_path / "a", pictures(2))
        line = complaint("--samples", folder, "--metrics", "is", "--vae", autoencoder_folder)
        assert "--seeds, --labels and --vae are for samples that are drawn" in line
        assert "--vae has no meaning with --make-ref" in complaint("--make-ref", folder, "--vae", autoencoder_folder)


def test_the_papers_run_prints_commands_that_decode() -> None:
    commands = [stage.command(Path("out")) for stage in dict(stages(ImagenetConfig(vae=Path("vae"))))["evaluation"]]
    assert commands
    assert all(cli.parse(command[0], command[1:]).vae == Path("vae") for command in commands)
