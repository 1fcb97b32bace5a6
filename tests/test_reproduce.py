"""The paper's study: its numbers as they are printed, verdicts that follow from rows, and plans that parse."""

import re
from pathlib import Path

import pytest

from ard import cli
from ard.analysis.flops import student_row, usual_network
from ard.cli.options import parse_seeds
from ard.cli.reproduce import Reproduce
from ard.core.errors import InputError
from ard.core.files import write_json
from ard.evaluation.evaluate import Row, Scores
from ard.networks.transformer import named_config
from ard.presets.paper import GRIDS, TRAJECTORIES
from ard.student.student import StudentConfig
from ard.studies.paper.imagenet import ImagenetConfig, imagenet_plan, run_imagenet
from ard.studies.paper.paper import ARD_4, ARD_4_ALL, CLAIMS, STEP_4, TABLE_1, Claim, Metric, PaperRow, Setting
from ard.studies.paper.recipes import RECIPES
from ard.studies.paper.report import report, results_of, verdict
from ard.studies.paper.tiny import DEPTH, TinyConfig, all_cells, cells_of, plan
from ard.studies.sweep import Result, Results

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
        ([1.5, 1.6, 1.55], [2.0, 2.1, 2.2], "**yes**"),
        ([2.0, 2.1, 2.2], [1.5, 1.6, 1.4], "**no**"),
        ([1.5, 2.05, 1.5], [2.0, 2.1, 2.2], "≈"),  # The seeds overlap.
        ([1.50, 1.51, 1.50], [1.52, 1.53, 1.54], "≈"),  # Less apart than a tenth of the floor.
        ([1.0, 1.0], [9.0, 9.0], "–"),  # Two seeds are too few.
    ],
)
def test_a_verdict_needs_every_seed_and_more_than_the_evaluation_can_tell(
    better: list[float], worse: list[float], word: str
) -> None:
    assert verdict(results_with(better, worse), CLAIM, CODE, DEPTH, num=1000).split()[0] == word


@pytest.mark.parametrize(("recall", "word"), [((0.6, 0.5), "**yes**"), ((0.5, 0.6), "**no**"), ((0.56, 0.5), "≈")])
def test_more_recall_is_better_beyond_its_standard_error(recall: tuple[float, float], word: str) -> None:
    claim = Claim(text="", paper="", better=ARD_4, worse=STEP_4, metric=Metric.RECALL)
    assert verdict(results_with([1.0] * 3, [1.0] * 3, recall=recall), claim, CODE, DEPTH, num=100).startswith(word)


def test_without_rows_there_is_no_verdict() -> None:
    assert verdict(results_with([1.0] * 3, [2.0] * 3), CLAIM, RECIPES[1], DEPTH, num=100) == "–"


def test_the_report_holds_every_table_every_claim_and_a_link_to_every_figure_that_is_there(tmp_path: Path) -> None:
    cells = all_cells(TinyConfig())
    results = Results([row_with(1.0)], [Result(cell, row_with(2.0 + cell.design.student.num_steps)) for cell in cells])
    error = {"fd_teacher": 3.0, "num_steps": 4}
    errors = [
        {**error, "model": model, "state": state, "teacher_steps": k}
        for model in ("step", "ard")
        for state in ("x_t", "x_0_hat")
        for k in range(4)
    ]
    shares = [
        {"student": "a/b", "step": 4, "reads": read, "share": 0.1 * read, "uniform": 0.25} for read in (1, 2, 3, 4)
    ]
    write_json(tmp_path / "figure-6b" / "errors.json", {"rows": errors})
    write_json(tmp_path / "figure-4" / "attention.json", {"rows": shares})
    (tmp_path / "figure-6b" / "errors.svg").write_text("<svg/>")
    network = named_config("tiny/2", latent_size=8, channels=1, num_classes=10)
    text = report(tmp_path, results, network, num=100, facts={"wall time": "3 s"})
    assert all(f"### {recipe.name}: " in text for recipe in RECIPES)
    assert text.count("| KD | 1 | 0 | 11.88 |") == len(RECIPES)
    assert all(f"| {claim.text} | {claim.paper} |" in text for claim in CLAIMS)
    assert "wall time: 3 s" in text
    assert "b: in the layers with history" in text
    assert "0.100, 0.200, 0.300, 0.400" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links == ["figure-6b/errors.svg"]


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
        assert collect.grid == TRAJECTORIES.grid
        for row, student, evaluation in zip(TABLE_1, parsed["students"], parsed["evaluation"], strict=True):
            assert student.trajectories == collect.out
            assert student.grid == GRIDS[row.setting.num_steps]
            assert set(student.grid) <= set(collect.grid)
            assert (student.student.mask, student.student.history_blocks) == (row.setting.mask, row.blocks)
            assert evaluation.samples == student.out
            assert parse_seeds(evaluation.seeds)[0] >= collect.seed + collect.num, "noises that no student has seen"

    def test_its_students_are_trained_as_the_authors_code_does(self, tmp_path: Path) -> None:
        for line in imagenet_plan(tmp_path, ImagenetConfig())["commands"]["students"]:
            student = cli.parse("distill", line.split()[2:])
            train = student.train
            assert (train.iterations, train.batch_size, train.learning_rate) == (300_000, 64, 1e-4)
            assert (train.ema_decay, train.weight_decay, train.clip_norm, train.warmup) == (0.9999, 0, 1, 0)
            assert (train.schedule, train.beta2) == ("constant", 0.999)
            assert (student.student.state, student.student.prediction) == ("x_0_hat", "next_state")
            assert (student.student.history, student.student.per_step_heads) == ("shared", True)

    def test_a_folder_that_is_no_teacher_is_found_before_anything_starts(self, tmp_path: Path) -> None:
        files = {name: tmp_path / name for name in ("teacher_folder", "vae", "ref", "inception")}
        for path in files.values():
            path.mkdir()
        with pytest.raises(InputError, match="is no teacher"):
            run_imagenet(tmp_path / "out", ImagenetConfig(**files), device="cpu", jobs=1)
        assert not (tmp_path / "out").exists()

    def test_its_storage_is_that_of_every_kept_point_in_half_precision(self, tmp_path: Path) -> None:
        shown = imagenet_plan(tmp_path, ImagenetConfig(num_trajectories=1000))
        assert shown["storage_gb"] == pytest.approx(1000 * 6 * 4 * 32 * 32 * 2 / 1e9, abs=0.05)

    def test_its_hours_are_its_flop_at_the_stated_rate(self, tmp_path: Path) -> None:
        shown = imagenet_plan(tmp_path, ImagenetConfig(tflops=100.0))
        assert shown["hours"]["collect"] == pytest.approx(shown["flop"]["collect"] / 1e14 / 3600, abs=0.06)
        assert shown["flop"]["collect"] == pytest.approx(2_560_000 * 50 * 2 * 118.6214e9, rel=1e-5)
        assert shown["flop"]["imagenet256-step"] == pytest.approx(300_000 * 64 * 4 * 3 * 2 * 118.6214e9, rel=1e-5)

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


@pytest.mark.parametrize(
    ("scale", "options", "word"),
    [("tiny", ["--tflops", "3"], "tflops"), ("imagenet256", ["--num-seeds", "1"], "num_seeds")],
)
def test_an_option_of_the_other_scale_is_refused(scale: str, options: list[str], word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--scale {scale} does not take {word}"):
        cli.parse("reproduce", ["--scale", scale, "--out", str(tmp_path / "out"), *options]).run()


def test_the_two_scales_are_named_when_another_is_given() -> None:
    with pytest.raises(InputError, match="tiny"):
        cli.parse("reproduce", ["--scale", "huge", "--out", "x"])
    assert isinstance(cli.parse("reproduce", ["--scale", "tiny", "--out", "x"]), Reproduce)
