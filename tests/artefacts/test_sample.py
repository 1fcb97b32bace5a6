"""ard sample: folders that never mix models, a teacher's own pictures, labels by name, prompts given now."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ard.core.errors import InputError
from ard.images.pictures import to_pixels
from ard.student.sample_folder import RECORD, require_whole
from ard.teacher.teacher import Guidance, load_teacher, noise_for_seeds, plan_ode, solve_pf_ode

Made = Callable[..., str]
Refused = Callable[..., str]
CPU = ["--device", "cpu"]


def pictures_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every picture with its content and its time of change."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.png")}


class TestFolder:
    """What is measured together was drawn by one model."""

    def draw(self, model: Path, out: Path, *options: object) -> list[object]:
        return ["sample", "--student", model, "--labels", 3, "--out", out, *CPU, "--seeds", *options]

    def test_the_same_command_finds_it_there_and_more_seeds_complete_it(
        self, toys: Path, tmp_path: Path, made: Made
    ) -> None:
        out = tmp_path / "samples.v1"
        made(*self.draw(toys / "student", out, "0-2"))
        before = pictures_in(out)
        assert "are there already: 3 images" in made(*self.draw(toys / "student", out, "0-2"))
        assert "5 images, 2 network evaluations each, 3 of them were there" in made(
            *self.draw(toys / "student", out, "0-4")
        )
        after = pictures_in(out)
        assert (len(after), {name: after[name] for name in before}) == (5, before)
        made(*self.draw(toys / "student", tmp_path / "whole", "0-4"))
        assert {name: one[0] for name, one in pictures_in(tmp_path / "whole").items()} == {
            name: one[0] for name, one in after.items()
        }

    def test_another_model_setting_or_set_of_seeds_is_refused_and_replaced_when_told(
        self, toys: Path, tmp_path: Path, made: Made, refused: Refused
    ) -> None:
        out = tmp_path / "samples"
        made(*self.draw(toys / "student", out, "0-2"))
        (out / "notes.txt").write_text("the user's")
        for model, seeds, *options in (
            ("kept", "0-2"),
            ("student", "0-2", "--speed", "fast"),
            ("student", "0-1"),
            ("student", "3-5"),
        ):
            assert "add --overwrite to replace them" in refused(*self.draw(toys / model, out, seeds, *options))
        made(*self.draw(toys / "kept", out, "3-4", "--overwrite"))
        assert sorted(pictures_in(out)) == ["seed-0000003-label-0003.png", "seed-0000004-label-0003.png"]
        assert (out / "notes.txt").exists()

    @pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=str)
    @pytest.mark.parametrize("name", ["theirs.png", "theirs.txt", "folder"])
    def test_strangers_are_refused_whatever_is_told(
        self, name: str, overwrite: list[str], toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        (tmp_path / "samples").mkdir()
        (tmp_path / "samples" / name).mkdir() if name == "folder" else (tmp_path / "samples" / name).touch()
        said = refused(*self.draw(toys / "student", tmp_path / "samples", "0", *overwrite))
        assert f"holds {name}, which ard sample did not write" in said

    def test_older_samples_without_a_record_are_replaced_when_told(
        self, toys: Path, tmp_path: Path, made: Made, refused: Refused
    ) -> None:
        out = tmp_path / "samples"
        made(*self.draw(toys / "student", out, "0-2"))
        (out / RECORD).unlink()
        assert "3 pictures and no samples.json" in refused(*self.draw(toys / "student", out, "0-2"))
        made(*self.draw(toys / "student", out, "0-2", "--overwrite"))

    def test_a_picture_put_beside_the_samples_is_refused(
        self, toys: Path, tmp_path: Path, made: Made, refused: Refused
    ) -> None:
        made(*self.draw(toys / "student", tmp_path / "samples", "0-2"))
        Image.new("L", (8, 8)).save(tmp_path / "samples/other.png")
        assert "other.png" in refused(*self.draw(toys / "student", tmp_path / "samples", "0-4"))

    @pytest.mark.slow
    def test_what_a_kill_leaves_is_not_measured_and_completed(
        self, toys: Path, tmp_path: Path, made: Made, refused: Refused, killed: Callable[..., None]
    ) -> None:
        out = tmp_path / "samples"
        killed(["os.fsync:9"], *self.draw(toys / "student", out, "0-5"))
        left = len(pictures_in(out))
        assert 0 < left < 6
        with pytest.raises(InputError, match=f"holds {left} of 6 samples"):
            require_whole(out)
        assert f"holds {left} of 6 samples" in refused("evaluate", "--samples", out)
        assert f"{left} of them were there" in made(*self.draw(toys / "student", out, "0-5"))
        require_whole(out)

    def test_the_record_says_what_is_there(self, toys: Path, tmp_path: Path, made: Made) -> None:
        made(*self.draw(toys / "student", tmp_path / "samples", "2-4"))
        record = json.loads((tmp_path / "samples" / RECORD).read_text())
        assert (record["written_by"], record["num"], record["seeds"]) == ("ard sample", 3, "2-4")
        assert record["made_by"].keys() == {"student", "speed", "autoencoder"}


class TestTeacher:
    """A teacher's own pictures, at once."""

    def test_its_pictures_are_its_ode_solved_as_the_options_say(self, toys: Path, tmp_path: Path, made: Made) -> None:
        options = ["--num-teacher-steps", 6, "--cfg-scale", 2, "--solver", "heun", "--labels", "0-9"]
        out = tmp_path / "a.npz"
        said = made("sample", "--teacher", toys / "teacher", "--seeds", "3-5", *options, "--out", out, *CPU)
        assert "3 images, 24 network evaluations each" in said
        teacher = load_teacher(toys / "teacher", torch.device("cpu"))
        ode = plan_ode(teacher, num_teacher_steps=6, guidance=Guidance(cfg_scale=2.0), solver=_solver("heun"))
        noise, label = noise_for_seeds(range(3, 6), (1, 8, 8)), torch.tensor([3, 4, 5])
        wanted = to_pixels(solve_pf_ode(teacher, noise, label, ode=ode, kept=(0, 6)).x_t[:, -1])
        with np.load(out) as arrays:
            assert np.array_equal(arrays["arr_0"], wanted.numpy())

    @pytest.mark.parametrize("name", ["sheet.PNG", "folder.of.samples"])
    def test_it_is_written_in_every_form(self, name: str, toys: Path, tmp_path: Path, made: Made) -> None:
        made("sample", "--teacher", toys / "teacher", "--seeds", "0-3", "--out", tmp_path / name, *CPU)
        found = tmp_path / name
        with Image.open(found if found.is_file() else found / "seed-0000002-label-0002.png") as picture:
            assert picture.format == "PNG"

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--teacher", "T", "--grid"], "--grid has rows of students"),
            (["--teacher", "T", "--speed", "fast"], "--speed has no meaning without --student"),
            (["--student", "S", "--cfg-scale", 2], "--cfg-scale is for --teacher by itself"),
            (["--student", "S", "--num-teacher-steps", 2], "--num-teacher-steps is for --teacher by itself"),
            (["--teacher", "T", "--num-teacher-steps", 0], "allowed are 1 to 1000"),
            (["--teacher", "T", "--solver", "ddim"], "ddim"),
            (["--teacher", "T", "--prompt", "a cat"], "--prompt needs --text-encoder"),
            (["--teacher", "T", "--prompt", "a cat", "--text-encoder", "E"], "has 10 classes; choose with --labels"),
            (["--teacher", "T", "--text-encoder", "E"], "are for --prompt"),
            (["--teacher", "S"], "is no teacher"),
            ([], "name a student's folder, or a teacher's"),
        ],
        ids=str,
    )
    def test_options_that_do_not_go_together_are_refused(
        self, options: list[object], told: str, toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        folders = {"T": toys / "teacher", "S": toys / "student", "E": toys / "t5"}
        words = [folders.get(str(word), word) for word in options]
        assert told in refused("sample", *words, "--out", tmp_path / "x.png", *CPU)


def _solver(name: str) -> Any:
    from ard.diffusion.process import Solver

    return Solver(name)


@pytest.fixture
def named(workspace: Path) -> Path:
    """Toys whose teacher has names for its ten classes."""
    path = workspace / "teacher/config.json"
    plain = json.loads(path.read_text())
    for name in ("data", "iterations", "seed", "seconds"):
        del plain[name]
    names = ["cat, tabby", "dog", "crane", "crane", "7", "a b", "fox", "owl", "", "hen"]
    plain["imported"] = {
        "format": "dit",
        "source": "x.pt",
        "cfg_channels": -1,
        "dropped": [],
        "scaling_factor": None,
        "vae": None,
        "class_names": names,
    }
    path.write_text(json.dumps(plain))
    return workspace


class TestNames:
    """Labels are numbers, or names of classes where the teacher has them."""

    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("cat", [0]),
            ("tabby,dog", [0, 1]),
            ("a b, 3,7-8,hen", [5, 3, 7, 8, 9]),
            ("7", [7]),
            ("all", list(range(10))),
        ],
    )
    @pytest.mark.parametrize("model", ["student", "teacher"])
    def test_they_choose_the_class(
        self, model: str, text: str, labels: list[int], named: Path, tmp_path: Path, made: Made
    ) -> None:
        options = [f"--{model}", named / model, "--labels", text, "--seeds", f"0-{len(labels) - 1}"]
        said = made("sample", *options, "--out", tmp_path / "a.npz", *CPU)
        with np.load(tmp_path / "a.npz") as arrays:
            assert arrays["labels"].tolist() == labels
        if "cat" in text:
            assert "labels: 0 cat, tabby" in said

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("cta", "no class is called 'cta'; there are, for instance, cat"),
            ("crane", "'crane' is the name of 2 and 3; give the number"),
            ("cat,", "no class is called ''"),
            ("10", "label 10 is out of range; allowed: 0 to 9"),
        ],
    )
    def test_a_name_that_is_none_is_refused(
        self, text: str, told: str, named: Path, tmp_path: Path, refused: Refused
    ) -> None:
        words = ["sample", "--student", named / "student", "--out", tmp_path / "a.npz", *CPU]
        assert told in refused(*words, "--labels", text)

    def test_a_student_whose_teacher_is_away_or_has_no_names_takes_numbers(
        self, toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        words = ["sample", "--student", toys / "student", "--out", tmp_path / "a.npz", *CPU]
        assert "'cat' is no number or range" in refused(*words, "--labels", "cat")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    toys: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "closed").mkdir(0o500)
    assert "cannot be written" in refused("sample", "--student", toys / "student", "--out", tmp_path / "closed/x")
