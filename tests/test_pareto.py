"""Figure 2c, d: what is on the front, latencies in rounds that hit all models alike, costs as ard flops counts them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ard import cli
from ard.analysis.latency import Latency, machine_facts, measure_latencies
from ard.analysis.pareto import Point, fronts, pareto_figure, pareto_front, pareto_rows, pareto_table
from ard.evaluation.evaluate import Row, Scores

CPU = torch.device("cpu")

# The front.


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 1.0)], [0]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], [0, 1, 2]),
        ([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)], [1, 2, 0]),  # Cheapest first.
        ([(1.0, 1.0), (2.0, 2.0)], [0]),
        ([(1.0, 2.0), (2.0, 2.0)], [0]),  # As good, and cheaper.
        ([(1.0, 2.0), (1.0, 1.0)], [1]),  # As cheap, and better.
        ([(1.0, 1.0), (1.0, 1.0), (2.0, 2.0)], [0, 1]),  # Equal ones do not beat each other.
    ],
)
def test_the_front_has_what_no_other_beats(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(*zip(*points, strict=True)) == front


@pytest.mark.parametrize("seed", range(20))
def test_on_the_front_more_cost_buys_a_better_score_and_all_others_are_beaten_from_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs, scores = torch.randint(1, 9, (2, 12), generator=generator).double().tolist()
    front = pareto_front(costs, scores)
    places = list(dict.fromkeys((costs[index], scores[index]) for index in front))
    assert places == sorted(places)
    assert [score for _, score in places] == sorted({score for _, score in places}, reverse=True)
    for index in set(range(12)) - set(front):
        assert any(cost <= costs[index] and score <= scores[index] for cost, score in places)
        assert (costs[index], scores[index]) not in places


# Latency.


class Machine:
    """A clock that models move on: model i needs its seconds, times the load of the machine at that moment."""

    def __init__(self, seconds: list[float], load: Callable[[int], float] = lambda _: 1.0) -> None:
        self.now, self.calls, self.load = 0.0, [], load
        self.models = [self._model(index, needed) for index, needed in enumerate(seconds)]

    def _model(self, index: int, seconds: float) -> Callable[[], object]:
        def run() -> None:
            self.now += seconds * self.load(len(self.calls))
            self.calls.append(index)

        return run

    def measure(self, rounds: int) -> list[Latency]:
        return measure_latencies(
            self.models, rounds=rounds, device=CPU, progress=lambda _: None, clock=lambda: self.now
        )


def test_every_round_runs_every_model_once_and_each_is_first_in_turn() -> None:
    machine = Machine([1.0, 2.0, 3.0])
    machine.measure(4)
    assert [machine.calls[start : start + 3] for start in range(0, 15, 3)] == [
        [0, 1, 2],  # Warms up.
        [0, 1, 2],
        [1, 2, 0],
        [2, 0, 1],
        [0, 1, 2],
    ]


def test_a_latency_is_the_median_with_the_quartiles_and_the_warm_up_does_not_count() -> None:
    loads = [100.0, 5.0, 1.0, 2.0, 4.0, 3.0]
    (latency,) = Machine([2.0], lambda call: loads[call]).measure(5)
    assert latency == Latency(median=6.0, lower_quartile=4.0, upper_quartile=8.0)


def test_one_round_has_no_spread() -> None:
    assert Machine([2.0]).measure(1) == [Latency(median=2.0, lower_quartile=2.0, upper_quartile=2.0)]


def test_a_load_that_lasts_some_rounds_meets_all_models_alike() -> None:
    first, second = Machine([1.0, 2.0], lambda call: 10.0 if call < 8 else 1.0).measure(7)
    assert second.median == 2 * first.median
    assert second.upper_quartile == 2 * first.upper_quartile


def test_the_machine_is_described() -> None:
    facts = machine_facts(CPU)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert str(facts["device"]).startswith("cpu (")


# Points, rows, table and figure.


def make_point(seconds: float, macs: int, distances: list[float], **changes: Any) -> Point:
    """A model with a seed for each distance to the teacher; that to the data is 10 more."""
    plain = {"model": "step", "num_steps": 2, "nfe": 2, "iterations": 8, "seconds": 1.0, "recipe": "one", **changes}
    shape = {"state": "x_t", "prediction": "solver_step", "mask": "diagonal", "history_blocks": 0, "history": "gated"}
    if plain["model"] in {"teacher", "untrained"}:
        shape = {}
    rest = {"fd_floor": 0.25, "paired_mse": 0.1, "precision": 0.9, "recall": 0.8, "accuracy": 0.95}
    rows = tuple(
        Row(seed=seed, scores=Scores(fd_teacher=distance, fd_real=10 + distance, **rest), **{**shape, **plain})
        for seed, distance in enumerate(distances)
    )
    latency = Latency(median=seconds, lower_quartile=0.9 * seconds, upper_quartile=1.2 * seconds)
    return Point(rows=rows, macs=macs, latency=latency)


def points() -> list[Point]:
    """A dear teacher, its bad untrained run, step distillation, and an ARD that is better and costs more."""
    ard = {"model": "ard", "mask": "causal", "history_blocks": 6, "recipe": "two"}
    return [
        make_point(8.0, 48_000, [0.25], model="teacher", num_steps=24, nfe=48),
        make_point(2.0, 4_000, [9.0], model="untrained", nfe=4),
        make_point(1.0, 2_000, [3.0, 5.0]),
        make_point(1.5, 2_500, [2.0], **ard),
        make_point(0.5, 1_000, [6.0], model="kd", num_steps=1, nfe=1, recipe="three"),
    ]


def test_there_is_a_front_for_every_cost_and_score() -> None:
    pairs = [(cost, score) for cost in ("macs", "latency") for score in ("fd_teacher", "fd_real")]
    assert fronts(points()) == {pair: [4, 2, 3, 0] for pair in pairs}


def test_a_row_has_costs_scores_with_their_range_and_the_fronts() -> None:
    rows = pareto_rows(points(), batch_size=64)
    step = rows[2]
    assert (step["model"], step["seeds"], step["macs"]) == ("step · 2 steps · x_t · solver_step", 2, 2000)
    assert (step["seconds_per_batch"], step["images_per_second"]) == (1.0, 64.0)
    assert (step["seconds_lower_quartile"], step["seconds_upper_quartile"]) == (0.9, 1.2)
    assert (step["fd_teacher"], step["fd_teacher_low"], step["fd_teacher_high"]) == (4.0, 3.0, 5.0)
    assert (step["fd_real"], step["fd_real_low"], step["fd_real_high"]) == (14.0, 13.0, 15.0)
    assert [row["front_macs_fd_teacher"] for row in rows] == [True, False, True, True, True]
    assert rows[0]["mask"] is None
    assert all(list(row) == list(step) for row in rows)


def test_the_table_has_a_line_per_model_with_the_fronts_that_it_is_on() -> None:
    _, _, teacher, untrained, step, _, kd, floor = pareto_table(points()).splitlines()
    assert teacher.split()[-4:] == ["macs,", "latency", "macs,", "latency"]
    assert untrained.split()[-2:] == ["–", "–"]
    assert step.split("solver_step")[1].split()[:9] == [
        *("2", "2e-06", "1.0000", "0.9000", "-", "1.2000"),
        *("4.00", "±1.00", "14.0"),
    ]
    assert "kd · 1 step" in kd
    assert "0.25;" in floor


@pytest.mark.parametrize("cost", ["macs", "latency"])
def test_the_figure_names_every_family_and_marks_its_steps_and_the_front(cost: str) -> None:
    pytest.importorskip("matplotlib")
    picture = pareto_figure(points(), cost=cost, x_label="cost of an image")
    named = ("teacher, guided solver", "untrained, guided solver", "M1 diagonal, N = 0, x_t", "M4 causal, N = 6, x_t")
    for text in (*named, "Pareto front", "noise floor", "cost of an image", "FD to the data (not FID)"):
        assert text in picture
    for note, times in {"24 steps": 2, "S = 2": 6, "KD": 2}.items():
        assert picture.count(f">{note}</text>") == times, "in both panels"


# The command.


def run(*words: object) -> int:
    return cli.run([*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and students: two seeds of an ARD with 3 steps, step distillation with 2."""
    root = tmp_path_factory.mktemp("runs")
    assert run("teach", "--model", "tiny/4", "--iterations", 6, "--batch-size", 16, "--out", root / "teacher") == 0
    collect = ["--num", 20, "--num-teacher-steps", 12, "--keep", "all", "--workers", 1]
    assert run("collect", "--teacher", root / "teacher", "--out", root / "store", *collect) == 0
    options = ["--batch-size", 8, "--warmup", 0, "--iterations", 3, "--trajectories", root / "store"]
    for name, more in {
        "ard-0": ["--num-steps", 3],
        "ard-1": ["--num-steps", 3, "--seed", 1],
        "step": ["--preset", "step", "--num-steps", 2],
    }.items():
        assert run("distill", *options, *more, "--out", root / name) == 0
    return root


def students(root: Path) -> list[object]:
    return ["--student", root / "ard-0", root / "step", root / "ard-1", "--num", 100]


@pytest.fixture(scope="module")
def analysed(runs: Path) -> dict[str, Any]:
    """What the command wrote as JSON."""
    pytest.importorskip("matplotlib")
    size = ["--batch-size", 16, "--rounds", 3]
    assert run("analyze", "pareto", *students(runs), *size, "--out", runs / "out") == 0
    return dict(json.loads((runs / "out" / "pareto.json").read_text()))


def test_the_command_places_the_teacher_its_few_steps_and_every_recipe(runs: Path, analysed: dict[str, Any]) -> None:
    rows = analysed["rows"]
    assert [(row["model"].split(" · ")[0], row["num_steps"], row["seeds"]) for row in rows] == [
        ("teacher", 12, 1),
        ("untrained", 2, 1),
        ("untrained", 3, 1),
        ("ard", 3, 2),
        ("step", 2, 1),
    ]
    names = {path.name for path in (runs / "out").iterdir()}
    assert names == {"pareto.csv", "pareto.json", "pareto-flops.svg", "pareto-latency.svg"}
    with (runs / "out" / "pareto.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["macs"]) for line in lines] == [row["macs"] for row in rows]


def test_the_scores_are_those_of_ard_evaluate(runs: Path, analysed: dict[str, Any]) -> None:
    assert run("evaluate", *students(runs), "--json", runs / "rows.json") == 0
    teacher, two, three, ard_0, step, ard_1 = json.loads((runs / "rows.json").read_text())["rows"]
    for row, wanted in zip(analysed["rows"], [[teacher], [two], [three], [ard_0, ard_1], [step]], strict=True):
        for name in ("fd_teacher", "fd_real"):
            values = [one[name] for one in wanted]
            # Another batch size adds in another order.
            assert row[f"{name}_low"] == pytest.approx(min(values), rel=1e-3)
            assert row[f"{name}_high"] == pytest.approx(max(values), rel=1e-3)


def test_the_costs_are_those_of_ard_flops(runs: Path, analysed: dict[str, Any]) -> None:
    macs = [row["macs"] for row in analysed["rows"]]
    for row, student in zip(macs[3:], ("ard-0", "step"), strict=True):
        assert cli.run(["flops", "--student", str(runs / student), "--json", str(runs / "flops.json")]) == 0
        counted = json.loads((runs / "flops.json").read_text())
        assert row == counted["macs"]
    assert macs[0] == 12 * macs[4], "24 guided passes against 2"
    assert (macs[1], 2 * macs[2]) == (2 * macs[4], 3 * macs[1])
    assert macs[3] > 1.5 * macs[4], "the history costs something"


def test_the_latencies_are_of_this_machine(analysed: dict[str, Any]) -> None:
    machine, rows = analysed["machine"], analysed["rows"]
    assert (machine["batch_size"], machine["rounds"], machine["threads"]) == (16, 3, torch.get_num_threads())
    for row in rows:
        assert 0 < row["seconds_lower_quartile"] <= row["seconds_per_batch"] <= row["seconds_upper_quartile"]
        assert row["images_per_second"] == 16 / row["seconds_per_batch"]
    assert rows[0]["seconds_per_batch"] > 2 * rows[4]["seconds_per_batch"], "24 guided passes against 2"


def test_the_command_refuses_what_cannot_be_meant(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "out"]
    for options, told in ((["--rounds", 0], "rounds is 0"), (["--batch-size", 0], "batch_size is 0")):
        assert run("analyze", "pareto", "--student", runs / "step", *options, *out) == 2
        assert told in capsys.readouterr().err
    assert run("analyze", "pareto", "--student", runs / "teacher", *out) == 2
    assert "is no student" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--references", tmp_path / "references", "--out", tmp_path / "out", "--dry-run"]
    assert run("analyze", "pareto", "--student", runs / "step", *options) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["machine"]["batch_size"], plan["machine"]["rounds"]) == (64, 7)
    assert not list(tmp_path.iterdir())
