"""The commands from end to end: teach, collect, distill, sample, evaluate."""

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ard
from ard.cli import COMMANDS
from ard.cli.sample_grid import require_one_shape
from ard.core.errors import InputError
from ard.images.pictures import labelled_sheet, to_pixels
from ard.networks.transformer import SIZES
from ard.presets import DISTILL_PRESETS
from ard.student.folder import load_card, load_student
from ard.student.sampling import sample
from ard.student.student import StateKind
from ard.teacher.teacher import load_teacher, noise_for_seeds, solve_pf_ode

Made = Callable[..., str]
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_what_is_loaded_and_drawn_does_not_depend_on_torchs_default_type(toys: Path, default: torch.dtype) -> None:
    def drawn() -> tuple[str, torch.Tensor]:
        student, _ = load_student(toys / "student", torch.device("cpu"))
        noise = noise_for_seeds(range(3), (1, 8, 8))
        return load_teacher(toys / "teacher", torch.device("cpu")).hash, sample(
            student, noise, condition=torch.arange(3)
        )

    teacher, trajectory = drawn()
    torch.set_default_dtype(default)
    try:
        again, other = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
    assert again == teacher
    assert torch.equal(other, trajectory)


DEPTH = SIZES["tiny"][0]
COLUMNS = {
    *("model", "num_steps", "state", "prediction", "mask", "history_blocks", "history", "nfe", "seed", "iterations"),
    *("fd_teacher", "fd_real", "fd_floor", "paired_mse", "precision", "recall", "accuracy", "seconds"),
}


@pytest.fixture(scope="module")
def students(
    toys: Path, tmp_path_factory: pytest.TempPathFactory, made: Made, distill_options: list[object]
) -> dict[str, Path]:
    """A student of each family, trained on the toys' trajectories."""
    root = tmp_path_factory.mktemp("students")
    steps = {"kd": [], "step": ["--num-steps", 2], "ard": ["--num-steps", 2], "ard-x0": ["--num-steps", 3]}
    for preset, options in steps.items():
        arguments = ["distill", "--preset", preset, "--trajectories", toys / "store", "--out", root / preset]
        made(*arguments, *distill_options[2:], *options)
    return {preset: root / preset for preset in steps}


@pytest.fixture(scope="module")
def evaluated(students: dict[str, Path], references: Path, made: Made) -> tuple[list[dict[str, Any]], str]:
    """The rows of all students, and what the command printed."""
    arguments = ["--student", *students.values(), "--num", 100, "--references", references, "--device", "cpu"]
    printed = made("evaluate", *arguments, "--json", references / "rows.json")
    return json.loads((references / "rows.json").read_text())["rows"], printed


def draw(made: Made, student: Path, out: Path, *options: object) -> Any:
    made("sample", "--student", student, "--out", out, "--device", "cpu", *options)
    return np.load(out)


class TestEvaluate:
    """The rows of the table."""

    def test_there_is_a_row_for_the_teacher_for_its_few_steps_and_for_each_student(
        self, evaluated: tuple[list[dict[str, Any]], str]
    ) -> None:
        rows, _ = evaluated
        assert [(row["model"], row["num_steps"], row["nfe"]) for row in rows] == [
            ("teacher", 12, 24),
            ("untrained", 1, 2),
            ("untrained", 2, 4),
            ("untrained", 3, 6),
            ("kd", 1, 1),
            ("step", 2, 2),
            ("ard", 2, 2),
            ("ard", 3, 3),
        ]

    def test_every_row_has_every_column(self, evaluated: tuple[list[dict[str, Any]], str]) -> None:
        for row in evaluated[0]:
            assert set(row) >= COLUMNS

    def test_a_students_row_says_what_it_is(self, evaluated: tuple[list[dict[str, Any]], str]) -> None:
        keys = ("state", "prediction", "mask", "history_blocks", "history", "seed", "iterations")
        assert [[row[key] for key in keys] for row in evaluated[0][4:]] == [
            ["x_t", "solver_step", "diagonal", 0, "gated", 0, 6],
            ["x_t", "solver_step", "diagonal", 0, "gated", 0, 6],
            ["x_t", "solver_step", "causal", DEPTH, "gated", 0, 6],
            ["x_0_hat", "next_state", "causal", DEPTH, "shared", 0, 6],
        ]
        assert all(row[key] is None for row in evaluated[0][:4] for key in keys[:6]), "no columns of a student's"

    def test_the_scores_are_numbers_in_their_ranges(self, evaluated: tuple[list[dict[str, Any]], str]) -> None:
        rows, _ = evaluated
        for row in rows:
            assert all(row[name] > 0 for name in ("fd_teacher", "fd_real", "fd_floor"))
            assert all(0 <= row[name] <= 1 for name in ("precision", "recall", "accuracy"))
        assert len({row["fd_floor"] for row in rows}) == 1, "the floor is the teacher's"
        assert rows[0]["paired_mse"] == 0, "the teacher is paired with itself"
        assert all(row["paired_mse"] > 0 for row in rows[1:])
        assert rows[0]["fd_teacher"] == rows[0]["fd_floor"]
        assert rows[0]["iterations"] == 20
        assert all(row["seconds"] > 0 for row in (rows[0], *rows[4:])), "training time"

    def test_the_errors_are_told_per_step(self, evaluated: tuple[list[dict[str, Any]], str]) -> None:
        for row in evaluated[0][4:]:
            assert len(row["error_teacher_forced"]) == len(row["error_rolled_out"]) == row["num_steps"]
            assert row["error_rolled_out"][0] == pytest.approx(row["error_teacher_forced"][0], rel=1e-3), "the noise is"

    def test_the_table_has_a_line_per_row_and_names_its_floor(
        self, evaluated: tuple[list[dict[str, Any]], str]
    ) -> None:
        rows, printed = evaluated
        lines = printed.splitlines()
        assert f"ard · 2 steps · x_t · solver_step · causal N={DEPTH} gated" in printed
        assert sum("steps" in line or "1 step" in line for line in lines) == len(rows)
        assert f"{rows[0]['fd_floor']:.2f}" in next(line for line in lines if "noise floor" in line)
        assert "FID" not in printed.replace("not FID", "")

    def test_evaluating_one_of_them_gives_the_same_numbers_and_trains_no_second_classifier(
        self,
        evaluated: tuple[list[dict[str, Any]], str],
        students: dict[str, Path],
        references: Path,
        made: Made,
        tmp_path: Path,
    ) -> None:
        stamps = {path: path.stat().st_mtime_ns for path in references.rglob("*.safetensors")}
        arguments = ["evaluate", "--student", students["ard"], "--num", 100, "--references", references]
        made(*arguments, "--json", tmp_path / "rows.json", "--device", "cpu")
        again = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert again == [evaluated[0][i] for i in (0, 2, 6)]
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    def test_the_numbers_do_not_depend_on_the_batch_size(
        self,
        evaluated: tuple[list[dict[str, Any]], str],
        students: dict[str, Path],
        references: Path,
        made: Made,
        tmp_path: Path,
    ) -> None:
        arguments = ["evaluate", "--student", students["ard"], "--num", 100, "--references", references]
        made(*arguments, "--json", tmp_path / "rows.json", "--batch-size", 37, "--device", "cpu")
        row = json.loads((tmp_path / "rows.json").read_text())["rows"][-1]
        for name in ("fd_teacher", "fd_real", "paired_mse", "precision", "recall", "accuracy"):
            assert row[name] == pytest.approx(evaluated[0][6][name], rel=1e-3)

    def test_a_smaller_evaluation_takes_a_part_of_a_larger_one(
        self,
        evaluated: tuple[list[dict[str, Any]], str],
        students: dict[str, Path],
        references: Path,
        made: Made,
        tmp_path: Path,
    ) -> None:
        copy = shutil.copytree(references, tmp_path / "copy")
        arguments = ["evaluate", "--student", students["ard"], "--references", copy, "--device", "cpu"]
        for num in (101, 100):
            made(*arguments, "--num", num, "--json", tmp_path / "rows.json")
        row = json.loads((tmp_path / "rows.json").read_text())["rows"][-1]
        assert row["fd_teacher"] == pytest.approx(evaluated[0][6]["fd_teacher"], rel=1e-3)


class TestSample:
    """Images from a student."""

    def test_a_sheet_shows_every_seed(self, toys: Path, tmp_path: Path, made: Made) -> None:
        out = tmp_path / "new" / "grid.png"
        said = made("sample", "--student", toys / "student", "--seeds", "0-19", "--out", out, "--device", "cpu")
        assert "20 images, 2 network evaluations each" in said
        with Image.open(out) as sheet:
            assert sheet.size == (8 * (8 * 8 + 2) + 0, 3 * (8 * 8 + 2))

    def test_a_folder_holds_one_picture_per_seed(self, toys: Path, tmp_path: Path, made: Made) -> None:
        options = ["--seeds", "0,5-6", "--labels", "3,4", "--out", tmp_path / "folder", "--device", "cpu"]
        made("sample", "--student", toys / "student", *options)
        names = sorted(path.name for path in (tmp_path / "folder").iterdir() if path.suffix == ".png")
        assert names == [
            "seed-0000000-label-0003.png",
            "seed-0000005-label-0004.png",
            "seed-0000006-label-0003.png",
        ]
        with Image.open(tmp_path / "folder" / names[0]) as picture:
            assert (picture.size, picture.mode) == ((8, 8), "L")

    def test_arrays_are_the_students_images(self, toys: Path, tmp_path: Path, made: Made) -> None:
        arrays = draw(made, toys / "student", tmp_path / "a.npz", "--seeds", "3-6", "--labels", "0-9")
        student, _ = load_student(toys / "student", torch.device("cpu"))
        label = torch.tensor([3, 4, 5, 6])
        images = sample(student, noise_for_seeds(range(3, 7), (1, 8, 8)), condition=label)[:, -1]
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((4, 8, 8, 1), np.uint8)
        assert np.array_equal(arrays["arr_0"], to_pixels(images).numpy())
        assert arrays["labels"].tolist() == label.tolist()
        assert arrays["seeds"].tolist() == [3, 4, 5, 6]

    def test_fast_draws_the_reference_within_a_grey_level(self, toys: Path, tmp_path: Path, made: Made) -> None:
        reference, fast = (
            draw(made, toys / "student", tmp_path / f"{speed}.npz", "--seeds", "0-6", "--speed", speed)["arr_0"]
            for speed in ("reference", "fast")
        )
        assert reference.std() > 10, "the images are not flat"
        assert np.abs(reference.astype(int) - fast).max() <= 1

    def test_samples_do_not_depend_on_the_batch_size(self, toys: Path, tmp_path: Path, made: Made) -> None:
        first, *others = [
            draw(made, toys / "student", tmp_path / f"{size}.npz", "--seeds", "0-6", "--batch-size", size)["arr_0"]
            for size in (7, 1, 3, 64)
        ]
        assert first.std() > 10, "the images are not flat"
        assert all(np.array_equal(first, other) for other in others)

    def test_the_same_seeds_give_the_same_images_whatever_comes_with_them(
        self, toys: Path, tmp_path: Path, made: Made
    ) -> None:
        arrays = draw(made, toys / "student", tmp_path / "a.npz", "--seeds", "0-9", "--labels", "1")["arr_0"]
        again = draw(made, toys / "student", tmp_path / "b.npz", "--seeds", "9,4", "--labels", "1")["arr_0"]
        assert np.array_equal(again, arrays[[9, 4]])
        assert not np.array_equal(arrays[9], arrays[4]), "another seed is another image"

    def test_the_same_command_writes_the_same_bytes(self, toys: Path, tmp_path: Path, made: Made) -> None:
        for suffix in ("png", "npz"):
            for name in ("a", "b"):
                made("sample", "--student", toys / "student", "--seeds", "0-3", "--out", tmp_path / f"{name}.{suffix}")
            assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()

    def test_a_student_needs_no_teacher(self, workspace: Path, made: Made) -> None:
        shutil.rmtree(workspace / "teacher")
        made("sample", "--student", workspace / "student", "--seeds", "0", "--out", workspace / "one.png")
        assert (workspace / "one.png").is_file()


GRID = ["--grid", "--seeds", "3-6", "--device", "cpu"]


@pytest.fixture(scope="module")
def grid_rows(toys: Path, students: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, made: Made) -> Any:
    """The images that each model draws by itself, by the label of its row."""
    out, rows = tmp_path_factory.mktemp("rows"), {}
    noise, label = noise_for_seeds(range(3, 7), (1, 8, 8)), torch.tensor([3, 4, 5, 6])
    teacher, card = load_teacher(toys / "teacher", torch.device("cpu")), load_card(students["ard"])
    for steps, times in {12: card.ode.times, 1: card.ode.times[::12], 2: card.tau}.items():
        ode = dataclasses.replace(card.ode, times=times)
        name = f"{'teacher' if steps == 12 else 'untrained'} · {steps} step{'s' * (steps > 1)}, guidance 1.5"
        rows[name] = to_pixels(solve_pf_ode(teacher, noise, label, ode=ode, kept=(0, steps)).x_t[:, -1])
    for name, shown in {"kd": "kd · 1 step", "ard": "ard · 2 steps"}.items():
        arrays = draw(made, students[name], out / f"{name}.npz", "--seeds", "3-6")
        rows[shown] = torch.from_numpy(arrays["arr_0"])
    return rows


class TestGrid:
    """Several models from the same noises."""

    @pytest.mark.parametrize(
        ("options", "left_out"),
        [([], "untrained"), (["--teacher-rows", "both"], "nothing"), (["--batch-size", 3], "untrained")],
        ids=str,
    )
    def test_a_grid_is_what_each_model_draws_by_itself_with_the_teacher_first(
        self,
        options: list[object],
        left_out: str,
        grid_rows: dict[str, Any],
        students: dict[str, Path],
        tmp_path: Path,
        made: Made,
    ) -> None:
        out = tmp_path / "grid.png"
        said = made("sample", "--student", students["kd"], students["ard"], "--out", out, *GRID, *options)
        wanted = {label: row for label, row in grid_rows.items() if left_out not in label}
        assert f"4 images from each of {len(wanted)} models" in said
        page = np.asarray(labelled_sheet(list(wanted), list(wanted.values()), scale=8)).astype(int)
        with Image.open(out) as picture:
            found = np.asarray(picture).astype(int)
        assert found.shape == page.shape
        # A teacher's batch of another size adds in another order, which may move a grey value by one.
        assert np.abs(found - page).max() <= 1

    def test_without_rows_of_the_teacher_no_teacher_is_needed(self, workspace: Path, made: Made) -> None:
        shutil.rmtree(workspace / "teacher")
        options = ["--teacher-rows", "none", "--out", workspace / "grid.png"]
        assert "each of 1 models" in made("sample", "--student", workspace / "student", *GRID, *options)

    def test_students_of_one_name_are_told_apart_by_their_paths(
        self, toys: Path, workspace: Path, made: Made, tmp_path: Path
    ) -> None:
        folders = [toys / "student", workspace / "student"]
        plan = json.loads(made("sample", "--student", *folders, "--out", tmp_path / "a.png", *GRID, "--dry-run"))
        assert plan["rows"][1:] == [f"{folder} · 2 steps" for folder in folders]

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["kd", "ard", "--out", "a.png"], "--student names 2 folders; add --grid"),
            (["ard", "--out", "a.png", "--teacher", "t"], "no meaning without --grid"),
            (["ard", "--out", "a.png", "--teacher-rows", "none"], "no meaning without --grid"),
            (["ard", "--out", "a.npz", "--grid"], "--out a.npz: --grid writes one picture"),
            (["ard", "--out", "a.png", "--grid", "--teacher", "t", "--teacher-rows", "none"], "leave out one of both"),
            (["ard", "--out", "a.png", "--grid", "--teacher", "t"], "t is no teacher"),
            (["--out", "a.png", "--grid"], "--student is empty"),
        ],
        ids=str,
    )
    def test_options_that_do_not_go_together_are_refused(
        self, options: list[str], told: str, students: dict[str, Path], refused: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(students["kd"].parent)
        assert told in refused("sample", "--student", *options)

    def test_the_teacher_of_a_grid_is_that_of_all_students(
        self, toys: Path, students: dict[str, Path], tmp_path: Path, refused: Made
    ) -> None:
        options = ["--teacher", toys / "other_teacher", "--out", tmp_path / "a.png", *GRID]
        assert "is not the student's" in refused("sample", "--student", students["kd"], students["ard"], *options)

    @pytest.mark.parametrize("change", [{"latent_size": 16}, {"channels": 3}, {"num_classes": 7}], ids=str)
    def test_the_students_of_a_grid_make_the_same(self, change: dict[str, int], toys: Path) -> None:
        card = load_card(toys / "student")
        other = dataclasses.replace(card, network=dataclasses.replace(card.network, **change))
        require_one_shape([Path("a"), Path("b")], [card, card])
        with pytest.raises(InputError, match=r"^c makes .*, a 1 x 8 x 8 with 10 classes; the students of a grid"):
            require_one_shape([Path("a"), Path("b"), Path("c")], [card, card, other])


NOT_THERE = (
    r"is no (teacher|student|autoencoder|trajectory store|file or folder here|folder of pictures)|does not exist"
)


def commands_with(toys: Path, out: Path) -> dict[str, list[object]]:
    """A call of each command that has --dry-run."""
    return {
        "teach": ["--out", out],
        "teacher import": [toys / "dit.safetensors", "--format", "dit", "--num-heads", 2, "--out", out],
        "collect": ["--teacher", toys / "teacher", "--out", out],
        "distill": ["--trajectories", toys / "grid_store", "--out", out],
        "images cache": ["--images", toys / "pictures", "--vae", toys / "vae", "--out", out],
        "sample": ["--student", toys / "student", "--out", out / "grid.png"],
        "export": ["--student", toys / "student", "--out", out],
        "evaluate": ["--student", toys / "student", "--json", out / "rows.json"],
        "flops": [],
        "plan": ["--preset", "ard"],
        "analyze masks": ["--out", out],
        "analyze attention": ["--student", toys / "student", "--out", out],
        "analyze errors": ["--student", toys / "student", "--out", out],
        "analyze convergence": ["--student", toys / "kept", "--out", out],
        "analyze pareto": ["--student", toys / "student", "--out", out],
        "analyze solvers": ["--teacher", toys / "teacher", "--solvers", "euler", "--out", out],
        "text encode": ["--prompts", toys / "prompts.txt", "--encoder", toys / "t5", "--max-tokens", 9, "--out", out],
        "demo": ["--out", out],
        "sweep": ["--trajectories", toys / "store", "--out", out],
        "reproduce": ["--scale", "tiny", "--out", out],
        **{f"bench {name}": [] for name in ("ceilings", "latency", "train", "collect", "data", "all", "cpu")},
    }


def _states(shard: Path) -> list[torch.Tensor]:
    """The states that a shard holds."""
    return [tensor for name, tensor in load_file(shard).items() if name in set(StateKind)]


class TestPlans:
    """What --dry-run and --help print."""

    def test_every_command_that_makes_something_has_a_dry_run(self, tmp_path: Path) -> None:
        with_dry_run = {
            verb
            for verb, (module, name, _) in COMMANDS.items()
            if "dry_run" in {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
        }
        assert with_dry_run == set(commands_with(tmp_path, tmp_path))

    @pytest.mark.parametrize("verb", sorted(commands_with(Path(), Path())))
    def test_a_dry_run_prints_the_configuration_and_writes_nothing(
        self, toys: Path, tmp_path: Path, made: Made, verb: str
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in toys.rglob("*")}
        plan = json.loads(made(*verb.split(), *commands_with(toys, tmp_path / "out")[verb], "--dry-run"))
        assert isinstance(plan, dict)
        assert plan
        assert not list(tmp_path.iterdir())
        assert {path: path.stat().st_mtime_ns for path in toys.rglob("*")} == before

    def test_the_configuration_of_a_dry_run_is_what_the_run_keeps(self, toys: Path, made: Made) -> None:
        arguments = ["distill", "--trajectories", toys / "store", "--out", toys / "student", "--num-steps", 2]
        options = ["--iterations", 6, "--batch-size", 8, "--warmup", 0]
        plan = json.loads(made(*arguments, *options, "--dry-run"))
        kept = json.loads((toys / "student" / "run.json").read_text())
        assert {name: plan[name] for name in kept} == kept

    def test_a_dry_run_of_distill_says_what_the_store_and_the_training_cost(self, toys: Path, made: Made) -> None:
        arguments = ["distill", "--trajectories", toys / "store", "--out", toys / "nowhere", "--num-steps", 2]
        cost = json.loads(made(*arguments, "--iterations", 6, "--batch-size", 8, "--dry-run"))["cost"]
        states = [tensor for path in (toys / "store").glob("*.safetensors") for tensor in _states(path)]
        assert cost["store_bytes"] == sum(one.nbytes for one in states)
        update = 8 * 3 * cost["flop"]["sample"]  # One image costs as many passes as a trajectory's forward pass.
        assert cost["flop"]["distill"] == 6 * update

    def test_a_dry_run_counts_the_memory_of_a_pass_and_of_what_is_trained(self, toys: Path, made: Made) -> None:
        given = ["distill", "--trajectories", toys / "store", "--out", toys / "nowhere", "--num-steps", 2, "--dry-run"]

        def memory(*more: object) -> dict[str, int]:
            return json.loads(made(*given, *more))["cost"]["memory_bytes"]["float32"]

        whole = memory("--batch-size", 8)
        assert memory("--batch-size", 32, "--accumulate", 4) == whole
        adapted = memory("--batch-size", 8, "--lora-rank", 1)
        assert adapted["moments"] == 2 * adapted["gradients"] == 2 * adapted["average"] < 0.5 * whole["moments"]
        assert (adapted["weights"], adapted["activations"]) == (whole["weights"], whole["activations"])

    def test_the_bytes_of_a_run_with_adapters_are_those_of_its_files(
        self, toys: Path, made: Made, tmp_path: Path
    ) -> None:
        given = ["distill", "--trajectories", toys / "store", "--num-steps", 2, "--iterations", 2, "--warmup", 0]
        given += ["--batch-size", 4, "--lora-rank", 1, "--out", tmp_path / "student", "--device", "cpu"]
        claimed = json.loads(made(*given, "--dry-run"))["cost"]["run_bytes"]
        made(*given)
        written = sum(path.stat().st_size for path in (tmp_path / "student").rglob("*.safetensors"))
        assert claimed == pytest.approx(written, rel=0.1), "headers, and the frozen weights once"

    def test_the_bytes_of_a_run_are_those_of_its_checkpoints_and_its_weights(self, toys: Path, made: Made) -> None:
        given = ["--trajectories", toys / "store", "--num-steps", 2, "--iterations", 6, "--dry-run", "--out", "x"]
        kept = sum(path.stat().st_size for path in (toys / "kept").rglob("*.safetensors"))
        every = json.loads((toys / "kept" / "run.json").read_text())["train"]["checkpoint_every"]
        more = ["--checkpoint-every", every, "--keep-checkpoints", 0]
        assert json.loads(made("distill", *given, *more))["cost"]["run_bytes"] == pytest.approx(kept, rel=0.02)
        last = sum(path.stat().st_size for path in (toys / "student").rglob("*.safetensors"))
        assert json.loads(made("distill", *given))["cost"]["run_bytes"] == pytest.approx(last, rel=0.02)

    @pytest.mark.parametrize("verb", sorted(COMMANDS))
    def test_help_explains_the_command_with_an_example(self, command: Call, verb: str) -> None:
        result = command(*verb.split(), "--help")
        assert result.returncode == 0
        assert re.search(rf"^\s*ard {verb} \S", result.stdout, re.MULTILINE)
        assert f"usage: ard {verb}" in result.stdout
        assert not result.stderr

    @pytest.mark.parametrize("verb", sorted(commands_with(Path(), Path())))
    def test_the_examples_of_help_are_commands_that_parse(self, command: Call, verb: str) -> None:
        """An example with --dry-run gets as far as the folders that are not there, or prints its plan."""
        examples = re.findall(rf"^\s*ard ({verb} .*)$", command(*verb.split(), "--help").stdout, re.MULTILINE)
        for example in examples:
            result = command(*example.split(), "--dry-run")
            assert result.returncode == 0 or re.search(NOT_THERE, result.stderr)

    def test_the_overview_lists_every_command(self, made: Made) -> None:
        assert made() == made("--help") == made("-h")
        assert all(f"  {verb}" in made() for verb in COMMANDS)

    @pytest.mark.parametrize(
        "preset", sorted(name for name, one in DISTILL_PRESETS.items() if not one.adversarial and not one.grid)
    )
    def test_a_preset_fills_in_the_options_and_what_is_given_wins(self, toys: Path, made: Made, preset: str) -> None:
        out = toys / "nowhere"
        arguments = ["distill", "--trajectories", toys / "store", "--out", out, "--dry-run", "--preset", preset]
        steps = [] if preset == "kd" else ["--num-steps", 4]
        plan = json.loads(made(*arguments, *steps))
        wanted = DISTILL_PRESETS[preset].student
        assert plan["student"]["num_steps"] == (1 if preset == "kd" else 4)
        assert plan["student"]["prediction"] == (wanted.prediction or "solver_step"), "it suits the toys' teacher"
        assert plan["student"]["history"] == wanted.history
        assert plan["student"]["state"] == wanted.state
        assert plan["student"]["mask"] == wanted.mask
        plan = json.loads(made(*arguments[:-2], f"--preset={preset}", "--num-steps", 2, "--prediction", "next_state"))
        assert (plan["student"]["num_steps"], plan["student"]["prediction"]) == (2, "next_state")

    def test_a_student_has_the_steps_of_the_store_unless_it_says_otherwise(self, toys: Path, made: Made) -> None:
        arguments = ["distill", "--trajectories", toys / "grid_store", "--out", toys / "nowhere", "--dry-run"]
        assert json.loads(made(*arguments))["grid"] == [0, 3, 6, 9, 12]
        assert json.loads(made(*arguments, "--num-steps", 2))["grid"] == [0, 6, 12]
        assert json.loads(made(*arguments, "--grid", 0, 3, 12))["student"]["num_steps"] == 2


class TestOptions:
    """How options are written."""

    @pytest.mark.parametrize("text", ["3e-4", "0.0003", ".0003", "3E-4"])
    def test_numbers_may_be_written_with_an_exponent(self, tmp_path: Path, made: Made, text: str) -> None:
        plan = json.loads(made("teach", "--out", tmp_path, "--learning-rate", text, "--dry-run"))
        assert plan["train"]["learning_rate"] == 3e-4

    @pytest.mark.parametrize("option", ["--learning-rate", "--learning_rate"])
    def test_dashes_and_underscores_are_the_same(self, tmp_path: Path, made: Made, option: str) -> None:
        plan = json.loads(made("teach", "--out", tmp_path, option, "0.5", "--dry-run"))
        assert plan["train"]["learning_rate"] == 0.5

    def test_a_value_may_be_joined_with_an_equals_sign(self, tmp_path: Path, made: Made) -> None:
        plan = json.loads(made("teach", f"--out={tmp_path}", "--iterations=7", "--kind=vp", "--dry-run"))
        assert (plan["train"]["iterations"], plan["diffusion"]["kind"]) == (7, "vp")

    def test_the_version_is_the_packages(self, made: Made) -> None:
        assert made("--version").strip() == ard.__version__


def test_the_module_is_the_command(tmp_path: Path, environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "ard", "destill"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert result.stderr.startswith("ard: unknown command 'destill'; did you mean distill? ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_both_diffusions_go_from_end_to_end(
    tmp_path: Path,
    made: Made,
    kind: str,
    teach_options: list[object],
    collect_options: list[object],
    distill_options: list[object],
) -> None:
    made("teach", "--kind", kind, "--out", tmp_path / "teacher", *teach_options, "--iterations", 3)
    options = ["--num", 6, "--solver", "ddim" if kind == "vp" else "heun", "--states", "x_t", "x_0_hat"]
    made("collect", "--teacher", tmp_path / "teacher", "--out", tmp_path / "store", *collect_options, *options)
    made("trajectories", "verify", tmp_path / "store")
    for preset in ("ard", "step-x0"):
        arguments = ["--trajectories", tmp_path / "store", "--out", tmp_path / preset, "--preset", preset]
        made("distill", *arguments, *distill_options, "--iterations", 2)
        made("sample", "--student", tmp_path / preset, "--seeds", "0-3", "--out", tmp_path / f"{preset}.png")
        assert (tmp_path / f"{preset}.png").stat().st_size > 100
