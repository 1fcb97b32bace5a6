"""ard export: a folder that holds all that sampling needs, whole or not at all, and says what it is."""

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from ard.core.config import to_plain
from ard.core.files import written_aside
from ard.networks.autoencoder import load_autoencoder
from ard.pipeline import ARDPipeline
from ard.student.folder import load_card

Made = Callable[..., str]
Refused = Callable[..., str]
CPU = ["--device", "cpu"]
SEEDS = range(1_000_000, 1_000_004)


def pictures_of(pipeline: ARDPipeline, labels: list[int], seeds: range) -> np.ndarray[Any, Any]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return np.stack([np.asarray(picture) for picture in pipeline(labels, generator=generators).images])


def sampled(made: Made, student: Path, out: Path, *options: object) -> np.ndarray[Any, Any]:
    """The pictures that `ard sample` draws from the seeds."""
    made("sample", "--student", student, "--seeds", f"{SEEDS[0]}-{SEEDS[-1]}", "--out", out, *CPU, *options)
    with np.load(out) as arrays:
        return np.asarray(arrays["arr_0"])


class TestFolder:
    """What is written."""

    def test_its_pipeline_draws_what_ard_sample_draws_to_the_bit(self, toys: Path, tmp_path: Path, made: Made) -> None:
        told = made("export", "--student", toys / "student", "--samples", 0, "--out", tmp_path / "digits", *CPU)
        assert "load it with ARDPipeline.from_pretrained(" in told
        pipeline = ARDPipeline.from_pretrained(tmp_path / "digits")
        expected = sampled(made, toys / "student", tmp_path / "s.npz")
        assert np.array_equal(pictures_of(pipeline, [0, 1, 2, 3], SEEDS), expected[..., 0])
        files = {str(path.relative_to(tmp_path / "digits")) for path in (tmp_path / "digits").rglob("*.*")}
        weights = "student/diffusion_pytorch_model.safetensors"
        assert files == {"README.md", "export.json", "model_index.json", "student/config.json", weights}
        assert len({(tmp_path / "digits" / name).stat().st_mode for name in files}) == 1

    def test_the_sheet_is_the_one_of_ard_sample(self, toys: Path, tmp_path: Path, made: Made) -> None:
        made("export", "--student", toys / "student", "--samples", 4, "--out", tmp_path / "digits", *CPU)
        seeds = ["--seeds", "1000000-1000003", "--out", tmp_path / "sheet.png"]
        made("sample", "--student", toys / "student", *seeds, *CPU)
        with Image.open(tmp_path / "digits/samples.png") as ours, Image.open(tmp_path / "sheet.png") as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert "seeds 1000000 to 1000003, not selected](samples.png)" in (tmp_path / "digits/README.md").read_text()

    def test_the_card_says_what_the_student_is_and_its_python_runs(
        self, toys: Path, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = ["--license", "apache-2.0", "--samples", 0, "--out", tmp_path / "digits"]
        made("export", "--student", toys / "student", *options, *CPU)
        text = (tmp_path / "digits/README.md").read_text()
        assert text.startswith("---\nlicense: apache-2.0\nlibrary_name: diffusers\n")
        for line in (
            "# digits",
            "| steps S | 2, at the points 0, 6, 12 of the teacher's 12 euler steps |",
            "| history | mask M4 (causal), N = 4 of 4 blocks, gated |",
            "| guidance | learned: the teacher's scale 1.5; none is given at sampling |",
            "| training | 6 updates, seed 0 |",
            "| license | apache-2.0 |",
            f"hash `{load_card(toys / 'student').teacher.hash}` |",
        ):
            assert line in text, line
        monkeypatch.chdir(tmp_path)
        (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        names: dict[str, Any] = {}
        exec(python, names)  # noqa: S102
        assert [picture.size for picture in names["images"]] == [(8, 8), (8, 8)]

    def test_latents_take_the_autoencoder_that_the_teacher_came_with(
        self, latent_student: Callable[..., Path], autoencoder_folder: Path, tmp_path: Path, made: Made
    ) -> None:
        student = latent_student(autoencoder_folder)
        made("export", "--student", student, "--samples", 2, "--out", tmp_path / "latent", *CPU)
        pipeline = ARDPipeline.from_pretrained(tmp_path / "latent")
        expected = sampled(made, student, tmp_path / "s.npz", "--vae", autoencoder_folder)
        assert np.array_equal(pictures_of(pipeline, [seed % 5 for seed in SEEDS], SEEDS), expected)
        assert pipeline.labels == {"tench": 0, "Tinca tinca": 0, "shark": 2}
        assert "A student of `DiT-toy`" in (tmp_path / "latent/README.md").read_text()
        config = json.loads((tmp_path / "latent/vae/config.json").read_text())
        assert config["_name_or_path"] == autoencoder_folder.name  # Not where it was on this machine.
        vae = load_autoencoder(autoencoder_folder, torch.device("cpu")).network.state_dict()
        assert all(torch.equal(value, vae[name]) for name, value in pipeline.vae.state_dict().items())


class TestAgain:
    """A folder that is there already."""

    def test_the_same_command_changes_nothing(
        self, toys: Path, tmp_path: Path, made: Made, contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        command = ["export", "--student", toys / "student", "--samples", 2, "--out", tmp_path / "digits", *CPU]
        made(*command)
        before = contents(tmp_path)
        assert "is there already" in made(*command)
        assert contents(tmp_path) == before

    def test_another_export_and_anything_else_are_refused(
        self, toys: Path, tmp_path: Path, made: Made, refused: Refused
    ) -> None:
        command = ["export", "--student", toys / "student", "--out", tmp_path / "digits", *CPU]
        made(*command, "--samples", 0)
        line = refused(*command, "--samples", 1, "--license", "mit")
        assert "holds another export (license None → mit; samples 0 → 1); choose another --out or delete it" in line
        assert "holds another export (student " in refused(
            "export", "--student", toys / "kept", *command[3:], "--samples", 0
        )
        (tmp_path / "other").mkdir()
        (tmp_path / "other/notes.txt").write_text("mine")
        assert "holds something else" in refused(*command[:4], tmp_path / "other")
        assert "holds something else" in refused(*command[:4], tmp_path / "other/notes.txt")

    def test_an_empty_folder_is_taken(self, toys: Path, tmp_path: Path, made: Made) -> None:
        (tmp_path / "digits").mkdir()
        made("export", "--student", toys / "student", "--samples", 0, "--out", tmp_path / "digits", *CPU)
        assert (tmp_path / "digits/model_index.json").is_file()

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: full disk")])
    def test_a_full_disk_leaves_nothing(
        self, error: Exception, toys: Path, tmp_path: Path, complaint: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            assert any(tmp_path.rglob("*.safetensors"))
            raise error

        monkeypatch.setattr("ard.export.folder.write_json", fail)
        line = complaint("export", "--student", toys / "student", "--samples", 0, "--out", tmp_path / "digits", *CPU)
        assert "nothing is lost, run the same command again" in line
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_export_left_is_removed(
        self, toys: Path, tmp_path: Path, made: Made, dead: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
            patch.setattr("os.getpid", lambda: dead)
            patch.setattr("shutil.rmtree", lambda *_, **__: None)
            with written_aside(tmp_path / "digits") as folder:
                (folder / "README.md").write_text("half")
                raise InterruptedError
        assert len(list(tmp_path.iterdir())) == 1
        made("export", "--student", toys / "student", "--samples", 0, "--out", tmp_path / "digits", *CPU)
        assert [path.name for path in tmp_path.iterdir()] == ["digits"]

    def test_a_dry_run_shows_what_would_be_written(self, toys: Path, tmp_path: Path, made: Made) -> None:
        plan = json.loads(
            made("export", "--student", toys / "student", "--out", tmp_path / "digits", "--dry-run", *CPU)
        )
        assert plan["export"]["about"]["title"] == "digits"
        assert plan["identity"]["samples"] == 16
        assert list(tmp_path.iterdir()) == []


class TestMetrics:
    """--metrics."""

    @pytest.fixture
    def row(self, toys: Path) -> dict[str, Any]:
        """A row of `ard evaluate --student`."""
        names = ("fd_teacher", "fd_real", "fd_floor", "paired_mse", "precision", "recall", "accuracy")
        card = load_card(toys / "student")
        shape = {"model": "ard", "num_steps": 2, "nfe": 2, "iterations": 6, "seconds": 1.0}
        return {**dict.fromkeys(names, 0.5), **shape, "recipe": card.recipe, "seed": card.seed}

    @pytest.fixture
    def exported(self, toys: Path, tmp_path: Path) -> Callable[[object], list[object]]:
        """The command with this as the content of the metrics' file."""

        def command(content: object) -> list[object]:
            (tmp_path / "metrics.json").write_text(json.dumps(content))
            words = ["export", "--student", toys / "student", "--metrics", tmp_path / "metrics.json", "--samples", 0]
            return [*words, "--out", tmp_path / "digits", *CPU]

        return command

    def test_the_students_row_and_its_teachers_are_on_the_card(
        self, row: dict[str, Any], exported: Callable[[object], list[object]], tmp_path: Path, made: Made
    ) -> None:
        no_seed = {**row, "recipe": "x", "seed": None}
        rows = [
            {**no_seed, "model": "teacher", "num_steps": 12, "fd_teacher": 1.25},
            {**no_seed, "model": "untrained", "fd_teacher": 2.25},
            {**no_seed, "model": "untrained", "num_steps": 4, "fd_teacher": 3.25},
            {**row, "recipe": "another", "fd_teacher": 4.25},
            {**row, "fd_teacher": 5.25},
        ]
        made(*exported({"rows": rows}))
        text = (tmp_path / "digits/README.md").read_text()
        assert re.findall(r"\| (\d\.25) \|", text) == ["1.25", "2.25", "5.25"]
        assert "noise floor of FD teacher (teacher against teacher): 0.50" in text

    def test_published_metrics_are_named_with_their_samples(
        self, toys: Path, exported: Callable[[object], list[object]], tmp_path: Path, made: Made
    ) -> None:
        card = load_card(toys / "student")
        samples = {"num": 50000, "seeds": "0-49999", "teacher": card.teacher.hash, "student": to_plain(card.student)}
        made(*exported({"metrics": {"fid": 1.8412, "fd_dinov2": 88.0}, "samples": samples}))
        text = (tmp_path / "digits/README.md").read_text()
        for line in ("| FID | 1.841 |", "| FD-DINOv2 | 88 |", "50000 samples, seeds 0-49999."):
            assert line in text

    def test_numbers_of_something_else_are_refused(
        self, row: dict[str, Any], exported: Callable[[object], list[object]], complaint: Refused, tmp_path: Path
    ) -> None:
        samples = {"metrics": {"fid": 2.0}, "samples": {"path": "pictures"}}
        for content, words in (
            ({"rows": [{**row, "seed": 9}]}, "has no row of this student"),
            ({"rows": [{"model": "ard"}]}, "is damaged or of another version of ard"),
            (samples, "measured other samples than this student's"),
            ({"numbers": []}, "holds no metrics; --metrics takes what ard evaluate --json wrote"),
            ([], "is damaged: a JSON object is expected"),
        ):
            assert words in complaint(*exported(content))
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


class TestRefusals:
    """Nothing is written for what does not fit."""

    def test_what_is_no_student(self, toys: Path, tmp_path: Path, refused: Refused) -> None:
        out = ["--out", tmp_path / "out", *CPU]
        assert "is no student: its config.json says that it holds a teacher" in refused(
            "export", "--student", toys / "teacher", *out
        )
        assert "is no student: it has no config.json" in refused("export", "--student", toys / "store", *out)
        assert "samples is -1; at least 0" in refused("export", "--student", toys / "student", "--samples", -1, *out)
        line = refused("export", "--student", toys / "student", "--license", "my own: free", *out)
        assert "--license 'my own: free': one of the hub's names is expected" in line

    def test_another_teacher_in_the_teachers_place(self, workspace: Path, tmp_path: Path, complaint: Refused) -> None:
        config = workspace / "teacher/config.json"
        config.write_text(config.read_text().replace('"num_heads": 2', '"num_heads": 4'))
        line = complaint("export", "--student", workspace / "student", "--out", tmp_path / "out", *CPU)
        assert "is not the student's; put the right one there, or none" in line
        assert not (tmp_path / "out").exists()

    def test_autoencoders_that_do_not_fit(
        self,
        latent_student: Callable[..., Path],
        autoencoder_folder: Path,
        make_autoencoder: Callable[..., Path],
        toys: Path,
        tmp_path: Path,
        complaint: Refused,
    ) -> None:
        student, out = latent_student(None, 0.5), ["--out", tmp_path / "out", *CPU]
        wrong = make_autoencoder(latent_channels=16)
        for words, line in (
            (["--student", student], "makes latents of 4 channels, no pictures; name the folder of the autoencoder"),
            (["--student", student, "--vae", wrong], "decodes latents of 16 channels, and "),
            (
                ["--student", student, "--vae", autoencoder_folder],
                "scales its latents by 0.18215, the teacher's by 0.5; decode those of",
            ),
            (["--student", student, "--vae", toys / "teacher"], "is no autoencoder: its config.json holds None"),
            (["--student", toys / "student", "--vae", autoencoder_folder], "makes 1"),
        ):
            assert line in complaint("export", *words, *out)
        assert not (tmp_path / "out").exists()

    def test_a_missing_package(
        self, toys: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "diffusers", None)
        monkeypatch.delitem(sys.modules, "ard.pipeline")
        monkeypatch.delattr("ard.pipeline")
        line = refused("export", "--student", toys / "student", "--out", tmp_path / "out", *CPU)
        assert "this needs the package diffusers, which is not installed: run pip install '.[pipeline]'" in line
