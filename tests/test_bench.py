"""Benchmarks: what is timed is what it says, equal models draw equal images, and a row's numbers fit together."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from ard import cli
from ard.analysis.flops import student_row
from ard.bench import training
from ard.bench.ceilings import Ceiling, best_flops, measure_ceilings, product_shapes
from ard.bench.collecting import ways
from ard.bench.contenders import contenders, random_batch, random_network, random_student, require_equal
from ard.bench.dense import dense_forward
from ard.bench.measure import Timed, measure_rows, ratios
from ard.bench.reading import reading_rate
from ard.bench.training import update_macs, updates
from ard.core.errors import InputError
from ard.networks.transformer import Transformer, TransformerConfig
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind, StudentConfig

CPU = torch.device("cpu")
KD = StudentConfig(num_steps=1, mask=HistoryMask.DIAGONAL, history_blocks=0)
SHAPE = TransformerConfig(width=32, depth=3, num_heads=2, patch_size=2, latent_size=8, channels=3, num_classes=4)


@pytest.fixture(scope="module")
def network() -> Transformer:
    return random_network(SHAPE, CPU)


class TestContenders:
    """Models by name."""

    @pytest.mark.parametrize(
        ("name", "student"),
        [
            ("kd1", StudentConfig(num_steps=1, mask=HistoryMask.DIAGONAL, history_blocks=0)),
            ("step4", StudentConfig(num_steps=4, mask=HistoryMask.DIAGONAL, history_blocks=0)),
            ("ard4-n2", StudentConfig(num_steps=4, history_blocks=2)),
            ("ard2-all", StudentConfig(num_steps=2, history_blocks=3)),
            ("ard2-all-recomputed", StudentConfig(num_steps=2, history_blocks=3)),
            ("ard4-n2-fast", StudentConfig(num_steps=4, history_blocks=2)),
        ],
    )
    def test_a_name_is_a_student_and_costs_what_ard_flops_says(
        self, network: Transformer, name: str, student: StudentConfig
    ) -> None:
        (made,) = contenders([name], network, random_batch(SHAPE, 2, CPU))
        assert made.macs == student_row(SHAPE, student).cost.total
        assert made.run().shape == (2, 3, 8, 8)

    def test_a_guided_teacher_costs_two_passes_a_step(self, network: Transformer) -> None:
        teacher, kd = contenders(["teacher5", "kd1"], network, random_batch(SHAPE, 1, CPU))
        assert teacher.macs == 10 * kd.macs
        assert teacher.run().shape == (1, 3, 8, 8)

    @pytest.mark.parametrize("history", HistoryAttention)
    def test_recomputed_history_draws_the_cached_images(self, network: Transformer, history: HistoryAttention) -> None:
        names = ["ard3-all", "ard3-all-recomputed", "step3"]
        made = contenders(names, network, random_batch(SHAPE, 2, CPU), history=history)
        require_equal(made, tolerance=1e-5)
        assert not torch.allclose(made[0].run(), made[2].run(), rtol=1e-3, atol=1e-4), "history is read"

    @pytest.mark.parametrize("history", HistoryAttention)
    def test_fast_models_draw_the_images_of_the_plain_ones(
        self, network: Transformer, history: HistoryAttention
    ) -> None:
        names = ["ard3-n2", "ard3-n2-fast", "step3", "step3-fast", "kd1", "kd1-fast"]
        made = contenders(names, network, random_batch(SHAPE, 2, CPU), history=history)
        assert [one.equals for one in made[1::2]] == ["ard3-n2", "step3", "kd1"]
        require_equal(made, tolerance=1e-5)
        assert not torch.allclose(made[1].run(), made[3].run(), rtol=1e-3, atol=1e-4), "history is read"

    def test_models_that_should_be_equal_and_are_not_stop_the_benchmark(self, network: Transformer) -> None:
        cached, recomputed = contenders(["ard2-all", "ard2-all-recomputed"], network, random_batch(SHAPE, 1, CPU))
        object.__setattr__(cached, "run", lambda: 1.01 * recomputed.run())
        with pytest.raises(InputError, match=r"draw different images, by .*: nothing is timed"):
            require_equal([cached, recomputed], tolerance=1e-4)

    @pytest.mark.parametrize(
        "name", ["ard4", "teacher", "kd2", "step0", "ard4-n6-all", "step4-recomputed", "teacher5-fast", "best"]
    )
    def test_a_name_that_none_has_is_refused(self, network: Transformer, name: str) -> None:
        with pytest.raises(InputError, match="--models: "):
            contenders([name], network, random_batch(SHAPE, 1, CPU))

    def test_no_weight_is_zero(self, network: Transformer) -> None:
        student = random_student(network, StudentConfig(num_steps=2, history=HistoryAttention.GATED))
        assert all((one != 0).all() for one in student.parameters())


class TestCollecting:
    """The teacher in the ways that it may be run for a store."""

    def test_an_interval_costs_less_and_every_way_draws_images(self, network: Transformer) -> None:
        batch = random_batch(SHAPE, 2, CPU)
        eager, interval, rounded = ways(["eager", "interval", "bf16"], network, batch, num_teacher_steps=8)
        assert eager.macs == rounded.macs == 16 * student_row(SHAPE, KD).cost.total
        assert interval.macs == 13 * student_row(SHAPE, KD).cost.total, "0.75 to 0.25 in eighths"
        images = [one.run() for one in (eager, interval, rounded)]
        assert all(one.shape == (2, 3, 8, 8) and one.dtype == torch.float32 for one in images)
        assert 1e-4 < float((images[2] - images[0]).norm() / images[0].norm()) < 0.3
        assert not torch.allclose(images[1], images[0])

    @pytest.mark.parametrize("name", ["teacher25", "eager-bf16", "bf16-bf16", ""])
    def test_a_way_that_none_is_is_refused(self, network: Transformer, name: str) -> None:
        with pytest.raises(InputError, match="--ways: unknown way"):
            ways([name], network, random_batch(SHAPE, 1, CPU), num_teacher_steps=2)

    def test_the_teacher_of_the_others_is_the_eager_one(self, network: Transformer) -> None:
        batch = random_batch(SHAPE, 2, CPU)
        (eager,) = ways(["eager"], network, batch, num_teacher_steps=5)
        (teacher,) = contenders(["teacher5"], network, batch)
        torch.testing.assert_close(eager.run(), teacher.run(), rtol=1e-5, atol=1e-5)


class TestTraining:
    """Ours against the dense layout."""

    @pytest.mark.parametrize(
        ("mask", "state", "prediction"), list(itertools.product(HistoryMask, StateKind, Prediction)), ids=str
    )
    def test_the_dense_layout_gives_the_students_outputs(
        self, network: Transformer, mask: HistoryMask, state: StateKind, prediction: Prediction
    ) -> None:
        blocks = 0 if mask is HistoryMask.DIAGONAL else 2
        shared = HistoryAttention.SHARED
        config = StudentConfig(
            num_steps=3, mask=mask, history_blocks=blocks, history=shared, state=state, prediction=prediction
        )
        student = random_student(network, config)
        states = torch.randn((2, 3, 3, 8, 8), generator=torch.Generator().manual_seed(5))
        label = torch.tensor([1, 3])
        torch.testing.assert_close(dense_forward(student, states, label), student(states, label), rtol=1e-4, atol=1e-5)

    def test_a_gated_history_has_no_dense_layout(self, network: Transformer) -> None:
        student = random_student(network, StudentConfig(num_steps=2))
        with pytest.raises(ValueError, match="shared history only"):
            dense_forward(student, torch.zeros(1, 2, 3, 8, 8), torch.tensor([0]))

    def test_updates_start_equal_and_move_the_weights(self, network: Transformer) -> None:
        ours, dense = updates(network, StudentConfig(num_steps=2, history=HistoryAttention.SHARED), 2)
        first = float(ours.run())
        assert float(dense.run()) == pytest.approx(first, rel=1e-5)
        assert float(ours.run()) < first

    def test_other_gradients_stop_the_benchmark(self, network: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "dense_forward", lambda *given: 1.01 * dense_forward(*given))
        with pytest.raises(InputError, match="ours and dense have different gradients"):
            updates(network, StudentConfig(num_steps=2, history=HistoryAttention.SHARED), 2)

    def test_an_update_costs_three_forward_passes(self, network: Transformer) -> None:
        config = StudentConfig(num_steps=4, history_blocks=2)
        assert update_macs(config, network) == 3 * student_row(SHAPE, config).cost.total


class TestNumbers:
    """What a row says."""

    def test_a_rows_numbers_fit_together(self) -> None:
        timed = [Timed(name=name, batch=4, run=lambda: sum(range(20_000)), macs=8_000_000) for name in "ab"]
        for row in measure_rows(timed, flops=1e9, rounds=3, device=CPU):
            assert row.floor_ms == pytest.approx(16.0)
            assert row.gmac_per_image == 0.002
            assert row.ms_per_image == row.median_ms / 4
            assert row.over_floor == pytest.approx(row.median_ms / 16)
            assert row.peak_mb is None

    def test_ratios_are_of_what_was_measured_at_the_same_batch(self) -> None:
        rows = measure_rows(
            [Timed(name=name, batch=batch, run=lambda: None, macs=1) for batch in (1, 2) for name in ("slow", "fast")],
            flops=1e9,
            rounds=1,
            device=CPU,
        )
        found = ratios(rows, [("slow", "fast"), ("slow", "absent")])
        assert [(one["ratio"], one["batch"]) for one in found] == [("slow / fast", 1), ("slow / fast", 2)]
        assert found[1]["value"] == rows[2].median_ms / rows[3].median_ms

    def test_ceilings_are_of_the_networks_products_and_the_best_one_counts(self) -> None:
        assert product_shapes(SHAPE, 10) == [(10, 32, 96), (10, 32, 32), (10, 32, 128), (10, 128, 32)]
        found = measure_ceilings([(8, 8, 8)], device=CPU, dtype=torch.float32, rounds=1)
        assert found[0].name == "8x8 @ 8x8"
        assert all(0 < one.lower_quartile <= one.rate <= one.upper_quartile for one in found)
        made = [Ceiling(name=str(r), rate=r, lower_quartile=r, upper_quartile=r, unit=u) for r, u in RATES]
        assert best_flops(made) == 3e12

    def test_a_store_is_read(self) -> None:
        rate = reading_rate(num=70, batch_size=8, rounds=3)
        assert 0 < rate.slowest <= rate.median <= rate.fastest


RATES = ((2.0, "TFLOP/s"), (3.0, "TFLOP/s"), (9.0, "TB/s"))


class TestCommands:
    """What the user sees."""

    def test_latency_prints_rows_and_writes_them(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "rows.json"
        models = ["--models", "step2,ard2-all,ard2-all-recomputed", "--batch", "1,2"]
        assert cli.run(["bench", "latency", "--model", "tiny/4", *models, "--rounds", "1", "--json", str(path)]) == 0
        told, written = capsys.readouterr().out, json.loads(path.read_text())
        assert {"model", "batch", "median_ms", "spread", "over_floor"} <= written["rows"][0].keys()
        assert [(row["model"], row["batch"]) for row in written["rows"]] == [
            (name, batch) for batch in (1, 2) for name in ("step2", "ard2-all", "ard2-all-recomputed")
        ]
        assert "ard2-all / step2, batch 2" in told
        assert written["machine"]["torch"] == torch.__version__

    @pytest.mark.slow
    def test_all_runs_every_benchmark_and_writes_them_together(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "all.json"
        words = ["--model", "tiny/4", "--models", "teacher2,ard4-n1", "--rounds", "1", "--num", "600"]
        assert cli.run(["bench", "all", *words, "--json", str(path)]) == 0
        written = json.loads(path.read_text())
        assert list(written) == ["ceilings", "latency", "train", "collect", "data", "written_by"]
        assert [row["model"] for row in written["latency"]["rows"]] == ["teacher2", "ard4-n1"]
        assert [row["model"] for row in written["train"]["rows"]] == ["ours", "dense"]
        assert "trajectories/s" in capsys.readouterr().out

    def test_cpu_is_all_of_them_on_a_small_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["bench", "cpu", "--dry-run"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert {part["device"] for name, part in plan.items() if name != "data"} == {"cpu"}
        assert plan["latency"]["models"].startswith("teacher25,step4,ard4-n6,ard4-all")

    def test_train_compares_ours_with_the_dense_layout(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--model", "tiny/4", "--num-steps", "2", "--batch", "2", "--rounds", "1", "--device", "cpu"]
        assert cli.run(["bench", "train", *words]) == 0
        assert "dense / ours, batch 2" in capsys.readouterr().out

    def test_collect_prints_its_ways_and_their_ratios(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--model", "tiny/4", "--num-teacher-steps", "4", "--rounds", "1", "--device", "cpu"]
        assert cli.run(["bench", "collect", *words, "--ways", "eager,interval"]) == 0
        assert "eager / interval, batch 1" in capsys.readouterr().out

    @pytest.mark.slow
    def test_train_compares_the_variants_of_ours_and_counts_their_memory(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "compile", lambda part, **_: part)
        words = ["--model", "tiny/4", "--history", "gated", "--batch", "24", "--rounds", "1", "--device", "cpu"]
        path = ["--json", str(tmp_path / "rows.json")]
        assert cli.run(["bench", "train", *words, "--layouts", "ours,recomputed,compiled", *path]) == 0
        told = capsys.readouterr().out
        assert "recomputed / ours, batch 24" in told
        assert "ours / compiled, batch 24" in told
        peaks = {row["model"]: row["peak_mb"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
        assert peaks["recomputed"] < peaks["ours"]
        assert peaks["compiled"] is None, "what compiled code allocates is not seen"

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            ("train --layouts sparse", "'sparse' is unknown"),
            ("latency --model DiT-Q/2", "unknown model 'DiT-Q/2'"),
            ("latency --model tiny/2 --models ard4-n9", "history_blocks is 9"),
            ("latency --batch 0", "a batch has at least 1 image"),
            ("train --history gated", "--history shared"),
            ("collect --num-teacher-steps 0", "num_teacher_steps is 0"),
            ("data --rounds 0", "rounds is 0"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["bench", *words.split()]) == 2
        assert line in capsys.readouterr().err
