"""Training: exact on resume, by the formulas, and stopped in time when it goes wrong."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from ard.core.errors import InputError
from ard.core.random import batch_ids, generator_for
from ard.methods.losses import regression_loss
from ard.methods.regression import DistillConfig, distill_loss, mix_in_own_history, parameter_groups
from ard.student.sampling import sample
from ard.student.student import Prediction, StateKind, Student, StudentConfig
from ard.teacher.teacher import load_teacher
from ard.training.log import read_log
from ard.training.loop import Schedule, TrainConfig, learning_rate, train
from ard.training.state import TrainState, checkpoints, load_checkpoint, new_state, save_checkpoint
from ard.trajectories.reader import TrajectoryReader

Loss = Callable[[int], Tensor]
CPU = torch.device("cpu")


class Toy(nn.Module):
    """Two parameters and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, -2.0]))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("constant", torch.ones(3))


def toy_loss(toy: Toy, *, broken_from: float = math.inf, value: float = math.nan) -> Loss:
    """A noisy quadratic; from update `broken_from` on its value is `value`."""

    def loss_at(step: int) -> Tensor:
        target = torch.randn(2, generator=generator_for("target", step))
        return (toy.weight + toy.bias - target).square().sum() * (value if step >= broken_from else 1.0)

    return loss_at


def train_toy(folder: Path, *, loss: Callable[..., Loss] = toy_loss, **options: Any) -> TrainState:
    toy = Toy()
    config = TrainConfig(**{"iterations": 12, "warmup": 2, "checkpoint_every": 4, "log_every": 3, **options})
    return train(toy, loss(toy), config, folder, run={"toy": True}, description="toy")


def everything_in(state: TrainState) -> dict[str, Tensor]:
    """Parameters, buffers, averages and the optimiser's moments."""
    moments = {
        f"optimiser {index} {name}": value
        for index, values in state.optimiser.state_dict()["state"].items()
        for name, value in values.items()
    }
    averages = {f"average {name}": value for name, value in state.averaged().items()}
    return {**state.module.state_dict(), **averages, **moments}


def same(first: TrainState, second: TrainState) -> bool:
    ours, theirs = everything_in(first), everything_in(second)
    equal = [torch.equal(ours[name], theirs[name]) for name in ours]
    return first.step == second.step and ours.keys() == theirs.keys() and all(equal) and len(equal) == 11


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log's lines without their seconds."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def power_cut_at(at: int) -> Callable[[Toy], Loss]:
    """A loss that fails at update `at`."""

    def failing(toy: Toy) -> Loss:
        def loss_at(step: int) -> Tensor:
            if step == at:
                raise RuntimeError("power cut")
            return toy_loss(toy)(step)

        return loss_at

    return failing


class TestContinuity:
    """Interrupted and resumed is uninterrupted, bit for bit."""

    @pytest.mark.parametrize("at", [1, 4, 5, 7, 11])
    def test_a_run_that_fails_at_any_update_and_goes_on_is_as_if_it_had_not(self, tmp_path: Path, at: int) -> None:
        with pytest.raises(RuntimeError, match="power cut"):
            train_toy(tmp_path / "cut", loss=power_cut_at(at))
        assert same(train_toy(tmp_path / "cut"), train_toy(tmp_path / "whole"))
        assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")

    def test_a_finished_run_makes_no_update_when_it_is_called_again(self, tmp_path: Path) -> None:
        def forbidden(_toy: Toy) -> Loss:
            return lambda step: pytest.fail(f"update {step}")

        first = train_toy(tmp_path)
        assert same(train_toy(tmp_path, loss=forbidden), first)

    @pytest.mark.slow
    def test_a_killed_teacher_training_ends_with_the_same_bytes(
        self, tmp_path: Path, killed: Callable[..., None], made: Callable[..., str], teach_options: list[object]
    ) -> None:
        options = [*teach_options, "--iterations", 10, "--checkpoint-every", 2, "--log-every", 3, "--out"]
        killed(
            ["torch.Tensor.backward:4", "os.fsync:3", "torch.Tensor.backward:4"], "teach", *options, tmp_path / "cut"
        )
        assert not (tmp_path / "cut" / "config.json").exists(), "nothing is published yet"
        assert checkpoints(tmp_path / "cut" / "checkpoints")
        made("teach", *options, tmp_path / "cut")
        made("teach", *options, tmp_path / "whole")
        assert_same_run(tmp_path / "cut", tmp_path / "whole")

    @pytest.mark.slow
    def test_a_killed_distillation_ends_with_the_same_bytes(
        self,
        toys: Path,
        tmp_path: Path,
        killed: Callable[..., None],
        made: Callable[..., str],
        distill_options: list[object],
    ) -> None:
        own = ["--own-history", 0.5, "--own-history-ramp", 0]
        options = [*distill_options, *own, "--iterations", 10, "--checkpoint-every", 2, "--log-every", 3]
        arguments = ["distill", "--trajectories", toys / "store", *options, "--out"]
        killed(
            ["os.fsync:2", "torch.Tensor.backward:4", "os.fsync:3", "ard.student.folder.save_model:1"],
            *arguments,
            tmp_path / "cut",
        )
        made(*arguments, tmp_path / "cut")
        made(*arguments, tmp_path / "whole")
        assert_same_run(tmp_path / "cut", tmp_path / "whole")

    def test_ctrl_c_says_that_the_same_command_goes_on(
        self,
        tmp_path: Path,
        command: Callable[..., Any],
        made: Callable[..., str],
        teach_options: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        options = ["teach", *teach_options, "--iterations", 6, "--checkpoint-every", 2, "--out"]
        with monkeypatch.context() as patch:
            patch.setattr("ard.training.loop.learning_rate", interrupt_at(3))
            result = command(*options, tmp_path / "cut")
        assert result.returncode == 130
        assert result.stderr.splitlines()[-1] == "ard: stopped"
        made(*options, tmp_path / "cut")
        made(*options, tmp_path / "whole")
        assert_same_run(tmp_path / "cut", tmp_path / "whole")


def interrupt_at(update: int) -> Callable[[TrainConfig, int], float]:
    def rate(config: TrainConfig, step: int) -> float:
        if step == update:
            raise KeyboardInterrupt
        return learning_rate(config, step)

    return rate


def assert_same_run(first: Path, second: Path) -> None:
    """The same published weights, the same checkpoints, the same log, and nothing left over."""
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert log_of(first) == log_of(second)
    for ours, theirs in zip(checkpoints(first / "checkpoints"), checkpoints(second / "checkpoints"), strict=True):
        tensors, others = load_file(ours), load_file(theirs)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert sorted(path.name for path in first.rglob("*")) == sorted(path.name for path in second.rglob("*"))


class TestSeeds:
    """A run is its configuration and its seed."""

    def test_the_same_seed_gives_the_same_teacher_and_another_gives_another(
        self, tmp_path: Path, made: Callable[..., str], teach_options: list[object]
    ) -> None:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            made("teach", *teach_options, "--iterations", 2, "--seed", seed, "--out", tmp_path / name)
        a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
        assert a == b
        assert a != c

    def test_the_same_seed_gives_the_same_student_and_another_gives_another(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], distill_options: list[object]
    ) -> None:
        arguments = ["distill", "--trajectories", toys / "store", *distill_options, "--iterations", 2]
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            made(*arguments, "--seed", seed, "--out", tmp_path / name)
        a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
        assert a == b
        assert a != c


class TestFormulas:
    """What the loop does, against a calculation by hand."""

    def test_the_average_follows_its_formula(self) -> None:
        toy = Toy()
        state = new_state(toy, AdamW(toy.parameters()))
        expected = toy.weight.detach().clone()
        for step, decay in enumerate([0.1, 2 / 11, 3 / 12, 0.3, 0.3]):  # min(0.3, (1 + step) / (10 + step))
            with torch.no_grad():
                toy.weight += step + 1
            state.average_weights(0.3)
            state.step += 1
            expected = decay * expected + (1 - decay) * toy.weight.detach()
        assert torch.allclose(state.averaged()["weight"], expected)

    def test_only_parameters_are_averaged(self, toys: Path) -> None:
        assert set(new_state(Toy(), AdamW(Toy().parameters())).averaged()) == {"weight", "bias"}
        published = load_file(toys / "student" / "model.safetensors")
        teacher = load_teacher(toys / "teacher", CPU)
        buffers = {name for name, _ in teacher.network.named_buffers()}
        assert "pos_embed" in buffers
        assert not {name.removeprefix("network.") for name in published} & {*buffers, "tau"}

    def test_what_is_published_is_the_average(self, toys: Path) -> None:
        checkpoint = load_file(checkpoints(toys / "teacher" / "checkpoints")[-1])
        for name, value in load_file(toys / "teacher" / "model.safetensors").items():
            assert torch.equal(value, checkpoint[f"average.{name}"])
        assert not torch.equal(checkpoint["average.x_embedder.weight"], checkpoint["model.x_embedder.weight"])

    def test_the_learning_rate_warms_up_and_stays(self) -> None:
        config = TrainConfig(learning_rate=8.0, warmup=4, iterations=10, schedule=Schedule.CONSTANT)
        assert [learning_rate(config, step) for step in range(10)] == [2, 4, 6, *[8] * 7]

    def test_the_learning_rate_warms_up_and_falls_along_a_half_cosine(self) -> None:
        config = TrainConfig(learning_rate=1.0, warmup=2, iterations=10, schedule=Schedule.COSINE)
        rates = [learning_rate(config, step) for step in range(11)]
        assert rates[:3] == [0.5, 1.0, 1.0]
        assert rates[6] == pytest.approx(0.05 + 0.95 / 2), "half-way"
        assert rates[4] == pytest.approx(0.05 + 0.95 * (1 + math.sqrt(0.5)) / 2), "a quarter of the way"
        assert rates[10] == pytest.approx(0.05)

    def test_without_warm_up_the_first_rate_is_the_peak(self) -> None:
        assert learning_rate(TrainConfig(learning_rate=0.1, warmup=0), 0) == 0.1

    def test_the_loop_uses_the_schedule(self, tmp_path: Path) -> None:
        train_toy(tmp_path, log_every=1)
        config = TrainConfig(iterations=12, warmup=2)
        assert [line["learning_rate"] for line in log_of(tmp_path)] == [learning_rate(config, i) for i in range(12)]

    @pytest.mark.parametrize(("clip_norm", "expected"), [(0.5, 0.5), (1e9, None)])
    def test_gradients_are_scaled_down_to_the_norm(
        self, tmp_path: Path, clip_norm: float, expected: float | None
    ) -> None:
        state = train_toy(tmp_path, iterations=1, clip_norm=clip_norm)
        norm = torch.cat([parameter.grad for parameter in state.module.parameters()]).norm()
        logged = log_of(tmp_path)[0]["gradient_norm"]
        assert logged > 1, "the log tells the norm before it is scaled"
        assert float(norm) == pytest.approx(expected or logged, rel=1e-4)

    def test_the_log_holds_means_over_the_updates_since_the_line_before(self, tmp_path: Path) -> None:
        losses: list[float] = []

        def noted(toy: Toy) -> Loss:
            def loss_at(step: int) -> Tensor:
                loss = toy_loss(toy)(step)
                losses.append(float(loss.detach()))
                return loss

            return loss_at

        train_toy(tmp_path, loss=noted)
        lines = log_of(tmp_path)
        assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12], "every third update and at every checkpoint"
        parts = [losses[0:3], losses[3:4], losses[4:6], losses[6:8], losses[8:9], losses[9:12]]
        assert [line["loss"] for line in lines] == pytest.approx([sum(part) / len(part) for part in parts])

    def test_the_batches_depend_on_seed_and_step_only_and_each_epoch_has_every_row_once(self) -> None:
        batches = [batch_ids(10, seed=3, step=step, batch=4) for step in range(15)]
        rows = torch.cat(batches).tolist()
        epochs = [rows[start : start + 10] for start in range(0, 60, 10)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs), "batch 2 spans two epochs"
        assert len({tuple(epoch) for epoch in epochs}) == 6, "each epoch has an order of its own"
        assert torch.equal(batch_ids(10, seed=3, step=7, batch=4), batches[7]), "whatever was drawn before"
        assert not torch.equal(batch_ids(10, seed=4, step=7, batch=4), batches[7])

    def test_a_batch_may_be_larger_than_the_data(self) -> None:
        ids = batch_ids(3, seed=0, step=1, batch=7)
        assert len(ids) == 7
        assert sorted(ids[2:5].tolist()) == [0, 1, 2], "rows 9 to 11 are the fourth epoch"


class TestCheckpoints:
    """What is kept, what is refused."""

    def test_the_last_ones_are_kept(self, tmp_path: Path) -> None:
        train_toy(tmp_path / "two", checkpoint_every=3, keep_checkpoints=2)
        train_toy(tmp_path / "all", checkpoint_every=3, keep_checkpoints=0)
        steps = [
            [int(path.stem[5:]) for path in checkpoints(tmp_path / name / "checkpoints")] for name in ("two", "all")
        ]
        assert steps == [[9, 12], [3, 6, 9, 12]]

    def test_a_checkpoint_brings_back_everything(self, tmp_path: Path) -> None:
        state = train_toy(tmp_path)
        toy = Toy()
        other = new_state(toy, AdamW(toy.parameters()))
        load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1], other)
        assert same(state, other)
        assert other.seconds == state.seconds

    @pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "without note", "flipped"])
    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
        self, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = train_toy(tmp_path)
        path = checkpoints(tmp_path / "checkpoints")[-1]
        inflict(path, damage)
        assert same(train_toy(tmp_path), whole)
        said = capsys.readouterr().err
        assert f"{path} is damaged" in said
        assert "it is deleted, and training goes on from the one of update 8" in said
        load_checkpoint(path, whole)

    def test_damaged_checkpoints_alone_are_named_and_stay(self, tmp_path: Path) -> None:
        train_toy(tmp_path)
        found = checkpoints(tmp_path / "checkpoints")
        for path in found:
            inflict(path, "truncated")
        with pytest.raises(InputError, match=rf"{found[0].name}.* no whole one before it; delete it to start anew"):
            train_toy(tmp_path)
        assert checkpoints(tmp_path / "checkpoints") == found

    def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(self, tmp_path: Path) -> None:
        train_toy(tmp_path)
        inflict(checkpoints(tmp_path / "checkpoints")[-1], "flipped")
        with pytest.raises(RuntimeError, match="power cut"):
            train_toy(tmp_path, loss=power_cut_at(11), checkpoint_every=1)
        assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["step-0000010", "step-0000011"]

    def test_a_checkpoint_of_another_network_is_refused(self, tmp_path: Path) -> None:
        train_toy(tmp_path)
        path, other = checkpoints(tmp_path / "checkpoints")[-1], nn.Linear(2, 2)
        state = dataclasses.replace(new_state(other, AdamW(other.parameters())), step=12)
        save_checkpoint(path.parent, state, keep=0)
        with pytest.raises(InputError, match=rf"{path.name} does not fit this run") as refusal:
            train_toy(tmp_path)
        assert "\n" not in str(refusal.value)

    def test_one_too_many_after_a_kill_is_deleted_by_the_next_run(self, tmp_path: Path) -> None:
        train_toy(tmp_path, keep_checkpoints=0)
        train_toy(tmp_path, keep_checkpoints=2)
        assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["step-0000008", "step-0000012"]

    def test_after_deleting_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(self, tmp_path: Path) -> None:
        whole = train_toy(tmp_path)
        checkpoints(tmp_path / "checkpoints")[-1].unlink()
        assert same(train_toy(tmp_path), whole)

    def test_a_half_written_checkpoint_of_a_killed_writer_is_not_seen(
        self, tmp_path: Path, leftover: Callable[[Path, int], Path], dead: int
    ) -> None:
        whole = train_toy(tmp_path)
        half = leftover(tmp_path / "checkpoints", dead)
        half = half.rename(half.with_name(half.name.replace("manifest.json", "step-0000016.safetensors")))
        assert same(train_toy(tmp_path), whole)
        assert not half.exists()


def inflict(path: Path, damage: str) -> None:
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(b"garbage" * 100)
        case "without note":
            save_file(load_file(path), path)
        case "flipped":
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


class TestLog:
    """log.jsonl is appended, and repaired by a run that goes on."""

    def test_lines_are_appended_and_never_rewritten(self, tmp_path: Path) -> None:
        places: list[tuple[int, int]] = []

        def watched(toy: Toy) -> Loss:
            def loss_at(step: int) -> Tensor:
                if (tmp_path / "log.jsonl").exists():
                    stat = (tmp_path / "log.jsonl").stat()
                    places.append((stat.st_ino, stat.st_size))
                return toy_loss(toy)(step)

            return loss_at

        train_toy(tmp_path, loss=watched, log_every=1)
        assert len({inode for inode, _ in places}) == 1
        assert len({size for _, size in places}) > 10

    @pytest.mark.parametrize("half", [b'{"step": 12, "lo', b"\0" * 50, b'{"step": 9999}\n{"step'], ids=str)
    def test_what_a_kill_leaves_at_the_end_goes(self, tmp_path: Path, half: bytes) -> None:
        train_toy(tmp_path / "whole")
        with pytest.raises(RuntimeError, match="power cut"):
            train_toy(tmp_path / "cut", loss=power_cut_at(7))
        with (tmp_path / "cut" / "log.jsonl").open("ab") as file:
            file.write(half)
        assert read_log(tmp_path / "cut")[0]["step"] == 3
        train_toy(tmp_path / "cut")
        assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")

    @pytest.mark.parametrize("line", [b"[1]", b'{"step": "3"}', b"{", b"[" * 100_000, b'{"step": ' + b"7" * 400 + b"}"])
    def test_a_damaged_line_is_named(self, tmp_path: Path, line: bytes) -> None:
        train_toy(tmp_path)
        (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(InputError, match=r"log\.jsonl, line 2, is damaged"):
            train_toy(tmp_path)


class TestRefusals:
    """A run that is another one, or that goes wrong."""

    def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(
        self, toys: Path, refused: Callable[..., str], teach_options: list[object], distill_options: list[object]
    ) -> None:
        line = refused("teach", "--out", toys / "teacher", *teach_options, "--beta2", 0.5)
        assert "teacher holds another run" in line
        assert "beta2 0.99 → 0.5" in line
        line = refused("distill", "--out", toys / "student", "--trajectories", toys / "grid_store", *distill_options)
        assert "student holds another run" in line
        assert "trajectories" in line

    def test_another_kind_of_model_in_the_same_folder_is_refused(
        self, toys: Path, refused: Callable[..., str], teach_options: list[object]
    ) -> None:
        assert "holds another run" in refused("teach", "--out", toys / "student", *teach_options)

    def test_a_model_of_unknown_origin_is_not_taken_for_this_runs(
        self, workspace: Path, refused: Callable[..., str], teach_options: list[object]
    ) -> None:
        assert "other_teacher" in refused("teach", "--out", workspace / "other_teacher", *teach_options)

    def test_finished_runs_are_there_already(
        self,
        workspace: Path,
        made: Callable[..., str],
        contents: Callable[[Path], dict[str, bytes]],
        teach_options: list[object],
        distill_options: list[object],
    ) -> None:
        before = contents(workspace)
        said = made("teach", "--out", workspace / "teacher", *teach_options)
        assert said == f"teacher {workspace / 'teacher'} is there already\n"
        arguments = ["--out", workspace / "student", "--trajectories", workspace / "store", *distill_options]
        assert made("distill", *arguments) == f"student {workspace / 'student'} is there already\n"
        assert contents(workspace) == before

    @pytest.mark.parametrize("damage", ["no weights", "flipped", "empty configuration", "no object"])
    def test_a_finished_folder_that_is_damaged_is_named(
        self,
        workspace: Path,
        refused: Callable[..., str],
        made: Callable[..., str],
        teach_options: list[object],
        damage: str,
    ) -> None:
        folder, before = workspace / "teacher", (workspace / "teacher/model.safetensors").read_bytes()
        match damage:
            case "no weights":
                (folder / "model.safetensors").unlink()
            case "flipped":
                (folder / "model.safetensors").write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
            case "empty configuration":
                (folder / "config.json").write_text("{}")
            case _:
                (folder / "config.json").write_text("[]")
        words = ["teach", "--out", folder, *teach_options]
        line = refused(*words)
        assert f"{folder} is finished and damaged: " in line
        assert "delete its config.json, and the same command publishes it again" in line
        (folder / "config.json").unlink()
        made(*words)
        assert (folder / "model.safetensors").read_bytes() == before

    def test_a_run_killed_before_it_published_publishes_the_same_at_the_next_call(
        self, workspace: Path, made: Callable[..., str], teach_options: list[object]
    ) -> None:
        before = (workspace / "teacher" / "model.safetensors").read_bytes()
        for name in ("model.safetensors", "config.json"):
            (workspace / "teacher" / name).unlink()
        made("teach", "--out", workspace / "teacher", *teach_options)
        assert (workspace / "teacher" / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_checkpoint(
        self, tmp_path: Path, value: float
    ) -> None:
        def broken(toy: Toy) -> Loss:
            return toy_loss(toy, broken_from=5, value=value)

        with pytest.raises(InputError, match=r"the loss is (nan|inf) .* at update") as refusal:
            train_toy(tmp_path, loss=broken, checkpoint_every=2, log_every=100)
        assert "\n" not in str(refusal.value)
        last = checkpoints(tmp_path / "checkpoints")[-1]
        assert last.name == "step-0000004.safetensors"
        assert all(value.isfinite().all() for value in load_file(last).values())
        assert all(math.isfinite(line["loss"]) for line in log_of(tmp_path))

    def test_a_gradient_that_is_no_number_stops_the_run_too(self, tmp_path: Path) -> None:
        def broken(toy: Toy) -> Loss:
            return lambda step: (toy.weight * 0).sqrt().sum() + toy_loss(toy)(step)  # d sqrt(0) is infinite, times 0.

        with pytest.raises(InputError, match="the gradient norm nan"):
            train_toy(tmp_path, loss=broken)
        assert not checkpoints(tmp_path / "checkpoints")

    def test_a_command_whose_loss_is_no_number_says_so_and_publishes_nothing(
        self, tmp_path: Path, complaint: Callable[..., str], teach_options: list[object]
    ) -> None:
        line = complaint("teach", "--out", tmp_path, *teach_options, "--learning-rate", "1e30")
        assert "the loss is" in line
        assert not (tmp_path / "config.json").exists()


def make_student(toys: Path, *, num_steps: int = 2, **options: Any) -> tuple[Student, TrajectoryReader]:
    teacher = load_teacher(toys / "teacher", CPU)
    reader = TrajectoryReader(toys / "store", state=StateKind.X_T, num_steps=num_steps)
    config = StudentConfig(num_steps=num_steps, **options)
    student = Student(teacher.network, teacher.diffusion, reader.tau, config)
    return student.requires_grad_(True).train(), reader


class TestDistillation:
    """What is particular to students."""

    def test_the_gates_learn_with_their_factor(self, toys: Path, tmp_path: Path) -> None:
        student, reader = make_student(toys)
        before = {name: value.detach().clone() for name, value in student.named_parameters()}
        config = TrainConfig(iterations=1, warmup=0, learning_rate=1e-4)
        distill = DistillConfig(gate_learning_rate_factor=30.0)
        loss = distill_loss(student, reader, config, distill)
        train(student, loss, config, tmp_path, run={}, description="gates", groups=parameter_groups(student, distill))
        moved = {name: (value.detach() - before[name]).abs().max() for name, value in student.named_parameters()}
        assert float(moved.pop("gates")) == pytest.approx(30e-4, rel=0.01), "AdamW's first update is the learning rate"
        assert max(float(value) for value in moved.values()) == pytest.approx(1e-4, rel=0.01)

    def test_every_parameter_is_in_one_group(self, toys: Path) -> None:
        student, _ = make_student(toys)
        groups = parameter_groups(student, DistillConfig(gate_learning_rate_factor=7.0))
        listed = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(listed) == sorted(id(parameter) for parameter in student.parameters())
        assert [group.get("factor", 1.0) for group in groups] == [1.0, 7.0]
        assert groups[1]["params"] == [student.gates]

    def test_the_probability_of_own_history_grows_and_stays(self) -> None:
        distill = DistillConfig(own_history=0.8, own_history_ramp=0.5)
        assert [distill.own_history_at(step, 8) for step in range(8)] == pytest.approx([0, 0.2, 0.4, 0.6, *[0.8] * 4])
        assert DistillConfig(own_history=0.8, own_history_ramp=0.0).own_history_at(0, 8) == 0.8
        assert DistillConfig().own_history_at(7, 8) == 0, "the paper's"

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_the_loss_reads_the_teachers_states_or_the_students_own(self, toys: Path, share: float) -> None:
        student, reader = make_student(toys, num_steps=4)
        config = TrainConfig(batch_size=8, seed=3)
        states, label = reader.read(batch_ids(20, seed=3, step=5, batch=8))
        states = states.float()
        with torch.no_grad():
            student.gates.fill_(0.3)
            inputs = sample(student, states[:, 0], condition=label)[:, :-1] if share else states[:, :-1]
            expected = regression_loss(student(inputs, label), states[:, 1:]).mean()
            other = regression_loss(student(states[:, :-1], label), states[:, 1:]).mean()
        distill = DistillConfig(own_history=share, own_history_ramp=0.0)
        loss = distill_loss(student, reader, config, distill)(5).detach()
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
        assert (float(loss) == pytest.approx(float(other), rel=1e-4)) is (share == 0)

    def test_each_trajectory_is_wholly_the_teachers_or_wholly_the_students_own(self, toys: Path) -> None:
        student, reader = make_student(toys, num_steps=4)
        states, label = reader.read(torch.arange(20))
        inputs = states[:, :-1].float()
        mixed = mix_in_own_history(student, inputs, label, 0.5, generator_for("test"))
        own = sample(student, inputs[:, 0], condition=label)[:, :-1]
        is_own = [torch.equal(row, mine) for row, mine in zip(mixed, own, strict=True)]
        is_teachers = [torch.equal(row, theirs) for row, theirs in zip(mixed, inputs, strict=True)]
        assert 3 <= sum(is_own) <= 17
        assert [not value for value in is_own] == is_teachers
        assert torch.equal(mixed[:, 0], inputs[:, 0]), "both start from the noise"

    def test_no_gradient_flows_through_the_roll_out(self, toys: Path) -> None:
        student, reader = make_student(toys)
        states, label = reader.read(torch.arange(4))
        assert not mix_in_own_history(student, states[:, :-1].float(), label, 1.0, generator_for("test")).requires_grad

    def test_a_student_learns(self, toys: Path, tmp_path: Path, made: Callable[..., str]) -> None:
        numbers = ["--num-steps", 2, "--iterations", 60, "--batch-size", 20, "--learning-rate", "2e-3", "--warmup", 0]
        arguments = ["distill", "--preset", "ard-paper", *numbers, "--log-every", 5, "--device", "cpu"]
        made(*arguments, "--trajectories", toys / "store", "--out", tmp_path)
        losses = [line["loss"] for line in log_of(tmp_path)]
        assert losses[-1] < 0.7 * losses[0]

    def test_a_student_that_starts_as_the_solver_is_better_than_one_that_starts_from_its_output(
        self, toys: Path
    ) -> None:
        losses = {}
        for prediction in Prediction:
            student, reader = make_student(toys, num_steps=4, prediction=prediction)
            losses[prediction] = float(distill_loss(student, reader, TrainConfig(), DistillConfig())(0).detach())
        assert losses[Prediction.SOLVER_STEP] < 0.1 * losses[Prediction.NEXT_STATE]
