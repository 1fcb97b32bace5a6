"""The paper's study: its numbers as they are printed, verdicts that follow from rows, and plans that parse."""

import re
from pathlib import Path

import pytest

from ard import cli
from ard.analysis.flops import student_row, usual_network
from ard.cli.reproduce import Reproduce
from ard.errors import InputError
from ard.evaluation.evaluate import Row, Scores
from ard.models.student import StudentConfig
from ard.reproduce.imagenet import GRIDS, KEPT, ImagenetConfig, imagenet_plan, run_imagenet
from ard.reproduce.paper import ARD_4, ARD_4_ALL, CLAIMS, STEP_4, TABLE_1, Claim, Metric, PaperRow, Setting
from ard.reproduce.recipes import RECIPES
from ard.reproduce.report import results_of, verdict
from ard.reproduce.tiny import DEPTH, TinyConfig, all_cells, cells_of, plan
from ard.sweep import Result, Results

CODE = RECIPES[0]
CLAIM = Claim(text="", paper="", better=ARD_4, worse=STEP_4)
NUMBERS = {Metric.DISTANCE: "fid", Metric.PRECISION: "precision", Metric.RECALL: "recall"}


def row_with(fd: float, recall: float = 0.5) -> Row:
    scores = Scores(
        fd_teacher=fd, fd_real=0.0, fd_floor=1.0, paired_mse=0.0, precision=0.5, recall=recall, accuracy=1.0
    )
    return Row(model="", num_steps=4, nfe=4, iterations=1, seconds=0.0, scores=scores)


def results_with(better: list[float], worse: list[float], *, recall: tuple[float, float] = (0.5, 0.5)) -> Results:
    """Results with these distances of ARD and of step distillation, seed by seed, at a noise floor of 1."""
    cells = cells_of(CODE, TinyConfig(num_seeds=len(better)))
    values = {ARD_4: (better, recall[0]), STEP_4: (worse, recall[1])}
    made = []
    for setting, (distances, share) in values.items():
        blocks = setting.history_blocks(DEPTH)
        wanted = [one for one in cells if one.design.student.num_steps == 4 and one.design.student.mask == setting.mask]
        chosen = sorted(
            (one for one in wanted if one.design.student.history_blocks == blocks), key=lambda one: one.seed
        )
        made += [Result(one, row_with(fd, share)) for one, fd in zip(chosen, distances, strict=True)]
    floor = row_with(1.0)
    return Results([floor], made)


def paper_row(setting: Setting) -> PaperRow:
    return next(row for row in TABLE_1 if row.setting == setting)


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: f"{row.method} {row.setting.num_steps} {row.blocks}")
def test_the_gflops_of_table_1_are_what_the_papers_count_gives(row: PaperRow) -> None:
    student = StudentConfig(num_steps=row.setting.num_steps, mask=row.setting.mask, history_blocks=row.blocks)
    assert student_row(usual_network("DiT-XL/2"), student).cost.gflops_paper == row.gflops
    assert row.setting.history_blocks(28) == row.blocks


def test_few_and_all_blocks_keep_their_share_in_a_smaller_network() -> None:
    assert [one.history_blocks(DEPTH) for one in (STEP_4, ARD_4, ARD_4_ALL)] == [0, 1, DEPTH]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_quotes_the_papers_own_numbers_in_the_order_that_it_states(claim: Claim) -> None:
    better, worse = (getattr(paper_row(one), NUMBERS[claim.metric]) for one in (claim.better, claim.worse))
    first, relation, second = re.fullmatch(r"(?:FID )?(\S+) ([<>]) (\S+)", claim.paper).groups()
    assert (float(first), float(second)) == (better, worse)
    assert relation == ("<" if claim.metric is Metric.DISTANCE else ">")
    assert claim.metric.sign * better < claim.metric.sign * worse


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ([1.5, 1.6], [2.0, 2.1], "**yes**"),
        ([2.0, 2.1], [1.5, 1.6], "**no**"),
        ([1.5, 2.05], [2.0, 2.1], "≈"),  # The seeds overlap.
        ([1.50, 1.51], [1.52, 1.53], "≈"),  # Less apart than a twentieth of the floor.
    ],
)
def test_a_verdict_needs_every_seed_and_more_than_the_evaluation_can_tell(
    better: list[float], worse: list[float], word: str
) -> None:
    assert verdict(results_with(better, worse), CLAIM, CODE, DEPTH, num=1000).startswith(f"{word} ")


@pytest.mark.parametrize(("recall", "word"), [((0.6, 0.5), "**yes**"), ((0.5, 0.6), "**no**"), ((0.51, 0.5), "≈")])
def test_more_recall_is_better_beyond_its_standard_error(recall: tuple[float, float], word: str) -> None:
    claim = Claim(text="", paper="", better=ARD_4, worse=STEP_4, metric=Metric.RECALL)
    assert verdict(results_with([1.0] * 2, [1.0] * 2, recall=recall), claim, CODE, DEPTH, num=100).startswith(word)


def test_without_rows_there_is_no_verdict() -> None:
    assert verdict(results_with([1.0], [2.0]), CLAIM, RECIPES[1], DEPTH, num=100) == "–"


def test_every_row_of_table_1_has_its_students_in_every_recipe_with_every_seed() -> None:
    cells = all_cells(TinyConfig(num_seeds=2))
    assert len(cells) == len({cell.name for cell in cells})
    results = Results([], [Result(cell, row_with(1.0)) for cell in cells])
    for recipe in RECIPES:
        for row in TABLE_1:
            found = results_of(results, recipe, row.setting, DEPTH)
            assert sorted(one.cell.seed for one in found) == [0, 1]


def test_the_commands_of_the_tiny_study_parse(tmp_path: Path) -> None:
    groups = plan(tmp_path, TinyConfig())
    assert list(groups) == ["teacher", "trajectories", "students", "figures"]
    for command in [command for group in groups.values() for command in group]:
        _, *words = command.split()
        verb = " ".join(words[:2]) if words[0] == "analyze" else words[0]
        cli.parse(verb, words[len(verb.split()) :])


class TestImagenet:
    """The paper's own run."""

    def test_its_commands_parse_and_fit_together(self, tmp_path: Path) -> None:
        commands = imagenet_plan(tmp_path, ImagenetConfig())["commands"]
        parsed = {
            name: [cli.parse(line.split()[1], line.split()[2:]) for line in group] for name, group in commands.items()
        }
        (collect,) = parsed["trajectories"]
        assert (collect.num_teacher_steps, collect.guidance.cfg_scale, collect.guidance.cfg_channels) == (25, 1.5, 3)
        assert collect.grid == KEPT
        for row, student, evaluation in zip(TABLE_1, parsed["students"], parsed["evaluation"], strict=True):
            assert student.trajectories == collect.out
            assert student.grid == GRIDS[row.setting.num_steps]
            assert set(student.grid) <= set(collect.grid)
            assert (student.student.mask, student.student.history_blocks) == (row.setting.mask, row.blocks)
            assert evaluation.samples == student.out

    def test_its_storage_is_that_of_every_kept_point_in_half_precision(self, tmp_path: Path) -> None:
        shown = imagenet_plan(tmp_path, ImagenetConfig(num_trajectories=1000))
        assert shown["storage_gb"] == pytest.approx(1000 * 6 * 4 * 32 * 32 * 2 / 1e9, abs=0.05)

    def test_its_hours_are_its_flop_at_the_stated_rate(self, tmp_path: Path) -> None:
        shown = imagenet_plan(tmp_path, ImagenetConfig(tflops=100.0))
        assert shown["hours"]["collect"] == pytest.approx(shown["flop"]["collect"] / 1e14 / 3600, abs=0.06)
        assert shown["flop"]["collect"] == pytest.approx(2_560_000 * 50 * 2 * 118.6214e9, rel=1e-5)
        assert shown["flop"]["step-s4"] == pytest.approx(300_000 * 64 * 4 * 3 * 2 * 118.6214e9, rel=1e-5)

    def test_without_weights_and_data_it_stops_with_what_is_missing(self, tmp_path: Path) -> None:
        (tmp_path / "vae").mkdir()
        with pytest.raises(InputError, match=r"--teacher-folder.*--ref.*--inception") as error:
            run_imagenet(tmp_path / "out", ImagenetConfig(vae=tmp_path / "vae"), device="cpu", jobs=1)
        assert "--vae" not in str(error.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("tflops", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_rate_must_be_a_positive_number(self, tflops: float) -> None:
        with pytest.raises(InputError, match="tflops is"):
            ImagenetConfig(tflops=tflops)


def test_the_two_scales_are_named_when_another_is_given() -> None:
    with pytest.raises(InputError, match="tiny"):
        cli.parse("reproduce", ["--scale", "huge", "--out", "x"])
    assert isinstance(cli.parse("reproduce", ["--scale", "tiny", "--out", "x"]), Reproduce)
