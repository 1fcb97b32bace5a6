"""An own teacher has numbers: every measure of students works for teachers that were imported, with data or without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ard.evaluation.feature_space import StateFeatures, TeacherFeatures
from ard.evaluation.measuring import some_of
from ard.images import load_data
from ard.student.student import StateKind
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard, load_teacher, load_teacher_card, save_teacher
from ard.trajectories.reader import TrajectoryReader

Made = Callable[..., str]
CPU = torch.device("cpu")
SHORT = ["--iterations", 2, "--batch-size", 4, "--warmup", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, toys: Path, made: Made) -> Path:
    """A folder with the toys' teacher as if it had been imported, a store and two students."""
    root = tmp_path_factory.mktemp("own")
    card, network = load_teacher_card(toys / "teacher"), load_teacher(toys / "teacher", CPU).network
    none = {"dropped": (), "scaling_factor": None, "vae": None, "class_names": ()}
    imported = Imported(format=SourceFormat.OTHER, source="mine", cfg_channels=1, **none)
    facts = TeacherCard(network=card.network, diffusion=card.diffusion, imported=imported)
    save_teacher(root / "teacher", facts, network.state_dict())
    steps = ["--num", 24, "--num-teacher-steps", 4, "--keep", "all", "--states", "x_t", "x_0_hat", "--workers", 1]
    made("collect", "--teacher", root / "teacher", "--out", root / "store", *steps, "--device", "cpu")
    for name, num_steps in (("one", 1), ("two", 2)):
        words = ["distill", "--trajectories", root / "store", "--num-steps", num_steps, "--out", root / name]
        made(*words, *SHORT, "--checkpoint-every", 1)
    return root


@pytest.fixture(scope="module")
def digit_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of twelve pictures each of the digits, as a folder."""
    root, (images, labels, _) = tmp_path_factory.mktemp("digits"), load_data("digits")
    for label in range(10):
        (root / str(label)).mkdir()
        for index in (labels == label).nonzero().flatten()[:12].tolist():
            pixels = ((images[index, 0] + 1) * 127.5).round().byte().numpy()
            Image.fromarray(pixels).save(root / str(label) / f"{index}.png")
    return root


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    return {f"{row['model']}-{row['num_steps']}": row for row in json.loads(path.read_text())["rows"]}


def test_students_have_numbers_without_any_data(own: Path, tmp_path: Path, made: Made) -> None:
    words = ["evaluate", "--student", own / "one", own / "two", "--num", 100, "--device", "cpu"]
    told = made(*words, "--json", tmp_path / "numbers.json")
    assert "not FID" in told
    assert "on features of the teacher's block" in told
    assert "precision and recall: against the teacher's other samples" in told
    assert "FD real" not in told
    rows = rows_of(tmp_path / "numbers.json")
    assert rows.keys() == {"teacher-4", "untrained-1", "untrained-2", "kd-1", "ard-2"}
    teacher, student = rows["teacher-4"], rows["ard-2"]
    assert teacher["paired_mse"] == 0
    assert teacher["fd_teacher"] == teacher["fd_floor"] > 0
    assert student["fd_teacher"] > teacher["fd_floor"]
    assert student["paired_mse"] > 0
    assert len(student["error_rolled_out"]) == 2
    assert student["fd_real"] is student["accuracy"] is None


@pytest.mark.slow
def test_real_pictures_bring_what_needs_data(own: Path, tmp_path: Path, made: Made, digit_pictures: Path) -> None:
    words = ["evaluate", "--student", own / "one", "--num", 100, "--real", digit_pictures, "--device", "cpu"]
    made(*words, "--json", tmp_path / "a.json")
    found = rows_of(tmp_path / "a.json")["kd-1"]
    assert found["fd_real"] > 0
    assert found["against"] == "the real images"
    told = made(*words, "--features", "classifier", "--json", tmp_path / "b.json", "--references", tmp_path / "kept")
    assert "on classifier features" in told
    assert 0 <= rows_of(tmp_path / "b.json")["teacher-4"]["accuracy"] <= 1


def test_a_teacher_a_store_and_pictures_are_measured_alike(
    own: Path, tmp_path: Path, made: Made, digit_pictures: Path
) -> None:
    pictures = ["--pictures", digit_pictures, "--num", 100, "--device", "cpu", "--json"]
    made("evaluate", "--trajectories", own / "store", *pictures, tmp_path / "store.json")
    rows = rows_of(tmp_path / "store.json")
    assert rows.keys() == {"teacher-4", "untrained-1", "untrained-2", "untrained-4", "store-0", "pictures-0"}
    assert rows["store-0"]["fd_teacher"] < rows["pictures-0"]["fd_teacher"]
    labels = TrajectoryReader(own / "store", state=StateKind.X_T, num_steps=1).labels
    assert len(labels[some_of(labels, 12)].unique()) == 10, "an even spread has the even labels only"
    assert rows["store-0"]["paired_mse"] is None
    references = ["--references", tmp_path / "other"]
    made("evaluate", "--teacher", own / "teacher", *references, *pictures, tmp_path / "teacher.json")
    assert rows_of(tmp_path / "teacher.json").keys() >= {"teacher-24", "untrained-4", "pictures-0"}


@pytest.mark.parametrize("what", ["errors", "pareto", "convergence"])
def test_every_analysis_works_without_data(what: str, own: Path, tmp_path: Path, made: Made) -> None:
    options = ["--rounds", 1] if what == "pareto" else []
    words = ["analyze", what, "--student", own / "two", "--num", 100, "--out", tmp_path, "--device", "cpu"]
    assert "teacher" in made(*words, *options)
    assert list(tmp_path.glob("*.svg"))


@pytest.mark.slow
def test_a_sweep_works_without_data(own: Path, tmp_path: Path, made: Made) -> None:
    grid = ["--num-steps", 2, "--masks", "M1,M4", "--seeds", 0, "--iterations", 2, "--batch-size", 4, "--jobs", 1]
    words = ["sweep", "--trajectories", own / "store", "--out", tmp_path, *grid, "--num", 100, "--device", "cpu"]
    assert "on features of the teacher's block" in made(*words)


def test_teacher_features_tell_images_apart_and_do_not_depend_on_their_number(own: Path) -> None:
    teacher = load_teacher(own / "teacher", CPU)
    space = TeacherFeatures(teacher, torch.tensor([teacher.network.config.num_classes]))
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found, classes = space.features(images)
    assert classes is None
    assert found.shape == (5, teacher.network.config.width)
    torch.testing.assert_close(space.features(images[2:3])[0], found[2:3])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_states_are_averaged_until_they_are_few() -> None:
    small, large = StateFeatures(1, 8), StateFeatures(4, 32)
    assert (small.side, large.side) == (8, 11)
    x = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(small.features(x)[0], x.flatten(1))
    values: Tensor = large.features(torch.ones(2, 4, 32, 32))[0]
    assert values.shape == (2, 4 * 121)


def test_a_plan_takes_a_teachers_folder(own: Path, made: Made) -> None:
    told = made("plan", "--preset", "ard", "--model", own / "teacher", "--tflops", "0.1")
    card = load_teacher_card(own / "teacher")
    assert f"states {card.network.channels} x {card.network.latent_size}" in told
    assert "hours at 0.1 TFLOP/s" in told


def test_a_dry_run_on_a_cpu_says_hours_for_that_cpu(own: Path, made: Made, tmp_path: Path) -> None:
    words = ["distill", "--trajectories", own / "store", "--num-steps", 2, "--out", tmp_path / "x", "--dry-run"]
    cost = json.loads(made(*words, "--device", "cpu"))["cost"]
    assert 0 < cost["tflops"] < 20, "a large GPU's are 400"
    assert cost["hours"]["distill"] == pytest.approx(cost["flop"]["distill"] / cost["tflops"] / 3.6e15, rel=0.06)


def test_pictures_that_are_not_there_are_told_before_the_work(own: Path, tmp_path: Path, refused: Made) -> None:
    kept = ["--references", tmp_path / "kept", "--num", 100, "--device", "cpu"]
    line = refused("evaluate", "--trajectories", own / "store", "--pictures", tmp_path / "none", *kept)
    assert "nothing is there" in line
    assert not (tmp_path / "kept").exists()
