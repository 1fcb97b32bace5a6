"""Training on trajectories that the teacher solves meanwhile: the same ones as a store has, and the same bits."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ard.core.model_folder import load_config, save_model
from ard.core.random import batch_ids, generator_for
from ard.methods.adversarial import RealSource, real_samples
from ard.methods.collapse import PER_LABEL, probe_from
from ard.methods.regression import DistillConfig, distill_loss
from ard.presets import DISTILL_PRESETS, ONLINE, find_preset
from ard.presets.digits import DIGITS
from ard.student.folder import load_card
from ard.student.student import StateKind, Student, StudentConfig
from ard.teacher.teacher import load_teacher
from ard.training.loop import TrainConfig, learning_rate
from ard.training.state import checkpoints
from ard.trajectories.manifest import load_manifest
from ard.trajectories.online import OnlineConfig, OnlineTrajectories, plan_online
from ard.trajectories.reader import TrajectoryReader
from ard.trajectories.solving import solve_batch
from ard.trajectories.source import Order, TrajectoryBatch

CPU = torch.device("cpu")
BATCH, POOL, REPLAY = 4, 2, 3  # A pool is 8 trajectories and lasts 6 updates.
CONFIG = OnlineConfig(num_teacher_steps=12, replay_updates=REPLAY, pool_batches=POOL, first_seed=3)
UPDATES = range(2 * CONFIG.updates_per_pool)


def order(length: int, step: int) -> Tensor:
    return batch_ids(length, seed=0, step=step, batch=BATCH)


def make(toys: Path, config: OnlineConfig = CONFIG, *, seed: int = 0) -> OnlineTrajectories:
    """The toys' teacher at work for a student of two steps."""
    teacher = load_teacher(toys / "teacher", CPU)
    sizes = {"batch_size": BATCH, "iterations": len(UPDATES), "seed": seed}
    manifest = plan_online(toys / "new", toys / "teacher", teacher, config, **sizes)
    return OnlineTrajectories(lambda: teacher, manifest, config, state=StateKind.X_T, grid=(0, 6, 12), device=CPU)


def wanted_ids(step: int) -> Tensor:
    """The trajectories of an update by the schedule's words, written down for a pool of two batches of four."""
    pool, place = divmod(step, 6)
    fresh = torch.arange(4) + 4 * place
    return 8 * pool + (fresh if place < 2 else order(8, step))


@pytest.fixture(scope="module")
def exact_store(toys: Path, tmp_path_factory: pytest.TempPathFactory, made: Callable[..., str]) -> Path:
    """The trajectories of both pools in float32, solved in the same batches."""
    folder = tmp_path_factory.mktemp("exact") / "store"
    sizes = ["--num", 16, "--shard-size", 8, "--batch-size", BATCH, "--dtype", "float32"]
    steps = ["--num-teacher-steps", 12, "--num-steps", 2, "--seed", 3, "--workers", 1]
    made("collect", "--teacher", toys / "teacher", "--out", folder, *sizes, *steps, "--device", "cpu")
    return folder


def reader_of(store: Path) -> TrajectoryReader:
    return TrajectoryReader(store, state=StateKind.X_T, num_steps=2)


@pytest.fixture
def online_options(toys: Path) -> list[object]:
    """A short online distillation through two pools."""
    numbers = ["--num-steps", 2, "--iterations", 10, "--batch-size", BATCH, "--warmup", 0, "--num-teacher-steps", 12]
    pools = ["--pool-batches", POOL, "--replay-updates", REPLAY, "--checkpoint-every", 2, "--log-every", 3]
    return ["distill", "--teacher", toys / "teacher", "--online", *numbers, *pools, "--device", "cpu", "--out"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log's lines without what the clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in {"seconds", "teacher_share"}} for line in lines]


class TestSchedule:
    """Which trajectories an update has."""

    def test_they_are_those_of_a_float32_store_to_the_bit(self, toys: Path, exact_store: Path) -> None:
        source, reader = make(toys), reader_of(exact_store)
        assert source.tau == reader.tau
        for step in UPDATES:
            ours, theirs = source.batch_at(step, order), reader.read(wanted_ids(step))
            assert ours.states.dtype == torch.float32
            assert torch.equal(ours.states, theirs.states)
            assert torch.equal(ours.labels, theirs.labels)

    @pytest.mark.parametrize(("replay", "pool"), [(1, 1), (1, 3), (4, 2), (6, 1)])
    def test_every_trajectory_serves_exactly_r_updates_and_no_update_has_one_twice(
        self, toys: Path, replay: int, pool: int
    ) -> None:
        config = dataclasses.replace(CONFIG, replay_updates=replay, pool_batches=pool)
        source, uses = make(toys, config), Counter[tuple[float, ...]]()
        for step in range(2 * config.updates_per_pool):
            noises = [tuple(states[0].flatten().tolist()) for states in source.batch_at(step, order).states]
            assert len(set(noises)) == BATCH
            uses.update(noises)
        assert set(uses.values()) == {replay}
        assert len(uses) == 2 * pool * BATCH

    @pytest.mark.parametrize("step", [0, 1, 4, 7, 11])
    def test_what_was_asked_before_changes_nothing(self, toys: Path, step: int) -> None:
        through, fresh = make(toys), make(toys)
        for before in UPDATES[: step + 1]:
            wanted = through.batch_at(before, order)
        assert torch.equal(fresh.batch_at(step, order).states, wanted.states)

    def test_the_teacher_solves_each_batch_once_and_only_in_the_first_epoch(
        self, toys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, solved = make(toys), list[tuple[int, int]]()

        def counted(*arguments: Any) -> Any:
            solved.append((step, len(arguments[2])))
            return solve_batch(*arguments)

        monkeypatch.setattr("ard.trajectories.online.solve_batch", counted)
        for step in UPDATES:
            source.batch_at(step, order)
        assert solved == [(0, BATCH), (1, BATCH), (6, BATCH), (7, BATCH)]

    def test_trainings_share_no_noise_with_an_evaluation_nor_with_one_another(self, toys: Path) -> None:
        usual = OnlineConfig(num_teacher_steps=12)
        manifests = [make(toys, usual, seed=seed).manifest for seed in (0, 1, 2, 2**32 - 1)]
        assert manifests[0].first_seed == 10**9
        assert [one.first_seed - 10**9 for one in manifests[:3]] == [0, manifests[0].num, 2 * manifests[0].num]
        assert 10**9 <= manifests[3].first_seed <= 2**32 - manifests[3].num

    def test_a_seed_that_is_given_is_the_first_ones_in_every_training(self, toys: Path) -> None:
        assert {make(toys, seed=seed).manifest.first_seed for seed in (0, 1, 2)} == {3}


class Listed(TrajectoryReader):
    """A store that is read by the online schedule."""

    def batch_at(self, step: int, order: Order) -> TrajectoryBatch:  # noqa: ARG002 the schedule's own
        return self.read(wanted_ids(step))


class TestTraining:
    """What a student learns from them."""

    def test_online_is_training_on_a_store_of_these_trajectories_in_this_order(
        self, toys: Path, exact_store: Path
    ) -> None:
        weights = []
        for source in (make(toys), Listed(exact_store, state=StateKind.X_T, num_steps=2)):
            teacher = load_teacher(toys / "teacher", CPU)
            student = Student(teacher.network, teacher.diffusion, source.tau, StudentConfig(num_steps=2))
            student.requires_grad_(True).train()
            optimiser = torch.optim.SGD(student.parameters(), 0.1)
            loss_at = distill_loss(student, source, TrainConfig(batch_size=BATCH), DistillConfig())
            for step in UPDATES:
                optimiser.zero_grad()
                loss_at(step).backward()
                optimiser.step()
            weights.append(student.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    @pytest.mark.slow
    def test_a_killed_training_ends_with_the_same_bytes(
        self, tmp_path: Path, killed: Callable[..., None], made: Callable[..., str], online_options: list[object]
    ) -> None:
        own = [*online_options[:-1], "--own-history", 0.5, "--out"]
        cut, whole = tmp_path / "cut", tmp_path / "whole"
        killed(["torch.Tensor.backward:6", "ard.student.folder.save_model:1"], *own, cut)
        made(*own, cut)
        made(*own, whole)
        assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert log_of(cut) == log_of(whole)
        assert len(checkpoints(cut / "checkpoints")) == 2

    def test_an_update_in_parts_has_the_same_trajectories(
        self, tmp_path: Path, made: Callable[..., str], online_options: list[object]
    ) -> None:
        made(*online_options, tmp_path / "whole")
        made(*online_options, tmp_path / "parts", "--accumulate", 2)
        whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
        assert all(torch.allclose(whole[name], parts[name], rtol=1e-2, atol=1e-4) for name in whole)
        losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("whole", "parts")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_the_log_has_the_teachers_share_of_the_time(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], online_options: list[object]
    ) -> None:
        made(*online_options, tmp_path / "online", "--log-every", 1)
        lines = [json.loads(line) for line in (tmp_path / "online" / "log.jsonl").read_text().splitlines()]
        shares = [line["teacher_share"] for line in lines]
        assert all(0 < share < 1 for share in (shares[i] for i in (0, 1, 6, 7)))
        assert [shares[i] for i in (2, 3, 4, 5, 8, 9)] == [0] * 6
        assert "teacher_share" not in (toys / "student" / "log.jsonl").read_text()

    def test_its_student_is_one_like_any_other(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], online_options: list[object]
    ) -> None:
        made(*online_options, tmp_path / "online")
        card, other = load_card(tmp_path / "online"), load_card(toys / "student")
        assert (card.ode, card.teacher.hash, card.grid) == (other.ode, other.teacher.hash, other.grid)
        assert card.recipe != other.recipe
        made("sample", "--student", tmp_path / "online", "--seeds", "0-3", "--out", tmp_path / "samples.png")
        further = ["--resume-from", tmp_path / "online", "--trajectories", toys / "store", "--iterations", 2]
        made("distill", *further, "--device", "cpu", "--out", tmp_path / "further")
        assert load_card(tmp_path / "further").start is not None

    def test_a_student_of_a_store_goes_on_online_when_the_ode_is_the_same(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], refused: Callable[..., str]
    ) -> None:
        start = ["distill", "--resume-from", toys / "student", "--teacher", toys / "teacher", "--online"]
        options = [*start, "--iterations", 2, "--batch-size", 4, "--device", "cpu", "--out", tmp_path / "new"]
        assert "learned from other trajectories than what --online makes" in refused(*options)
        made(*options, "--num-teacher-steps", 12)

    def test_another_replay_is_another_run(
        self, tmp_path: Path, made: Callable[..., str], refused: Callable[..., str], online_options: list[object]
    ) -> None:
        made(*online_options, tmp_path / "online")
        assert "is there already" in made(*online_options, tmp_path / "online")
        assert "online.replay_updates 3 → 2" in refused(*online_options, tmp_path / "online", "--replay-updates", 2)


class TestAdversary:
    """The discriminator's side, with the teacher's images for real."""

    def test_real_samples_are_what_the_pool_has_solved(self, toys: Path, exact_store: Path) -> None:
        real_at = real_samples(RealSource.TEACHER, make(toys), None, seed=0)
        reader = reader_of(exact_store)
        for step, there in {0: 4, 1: 8, 5: 8, 6: 4, 10: 8}.items():
            ids = torch.randint(there, (5,), generator=generator_for("real", 0, step)) + 8 * (step // 6)
            samples, (states, labels) = real_at(step, 5), reader.read(ids)
            assert torch.equal(samples.x, states[:, -1])
            assert torch.equal(samples.condition, labels)

    def test_the_probe_has_trajectories_of_several_labels_as_a_stores_has(
        self, toys: Path, tmp_path: Path, made: Callable[..., str]
    ) -> None:
        steps = ["--num", 80, "--num-teacher-steps", 12, "--num-steps", 2, "--seed", 3, "--dtype", "float32"]
        made("collect", "--teacher", toys / "teacher", "--out", tmp_path / "store", *steps, "--workers", 1)
        teacher = load_teacher(toys / "teacher", CPU)
        ours, theirs = (probe_from(source, teacher, CPU) for source in (make(toys), reader_of(tmp_path / "store")))
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.noise, theirs.noise)
        torch.testing.assert_close(ours.images, theirs.images)
        assert Counter(ours.labels.tolist()) == dict.fromkeys(range(8), PER_LABEL)

    @pytest.mark.slow
    def test_an_interrupted_online_adversarial_stage_goes_on_as_if_it_had_not_been(
        self,
        tmp_path: Path,
        command: Callable[..., Any],
        made: Callable[..., str],
        online_options: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        stage = ["--adversarial", "--real", "teacher", "--adversarial-warmup", 3, "--out"]
        options = [*online_options[:-1], *stage]

        def interrupted_at_9(config: TrainConfig, step: int) -> float:
            if step == 9:
                raise KeyboardInterrupt
            return learning_rate(config, step)

        with monkeypatch.context() as patch:
            patch.setattr("ard.training.loop.learning_rate", interrupted_at_9)
            assert command(*options, tmp_path / "cut").returncode == 130
        for folder in ("cut", "whole"):
            made(*options, tmp_path / folder)
        assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
        assert {"diversity", "discriminator_loss"} <= log_of(tmp_path / "whole")[-1].keys()


REFUSALS = {
    "neither source": ("distill --out {new}", "--trajectories and --online are two sources of trajectories; give one"),
    "both sources": (
        "distill --online --teacher {toys}/teacher --trajectories {toys}/store --out {new}",
        "two sources",
    ),
    "no teacher": ("distill --online --out {new}", "--online needs a teacher"),
    "no number of steps": (
        "distill --online --teacher {toys}/teacher --out {new}",
        "every teacher point is there; say how many steps the student has with --num-steps",
    ),
    "more steps than the teacher's": (
        "distill --online --teacher {toys}/teacher --num-steps 25 --out {new}",
        "25 student steps are more than the teacher's 24",
    ),
    "a grid beyond the teacher's steps": (
        "distill --online --teacher {toys}/teacher --grid 0 10 15 20 25 --out {new}",
        "grid 0,10,15,20,25 must rise from 0 (noise) to 24 (image)",
    ),
    "guidance below 1": (
        "distill --online --teacher {toys}/teacher --num-steps 2 --cfg-scale 0.5 --out {new}",
        "cfg_scale is 0.5",
    ),
    "no replay": (
        "distill --online --teacher {toys}/teacher --num-steps 2 --replay-updates 0 --out {new}",
        "replay_updates is 0; at least 1",
    ),
    "noises of an evaluation": (
        "distill --online --teacher {toys}/teacher --num-steps 2 --first-seed 999000 --out {new}",
        "would have the seeds 999000 to 1005143, and those from 1000000 to 999999999 are for evaluation",
    ),
    "noises beyond the last": (
        "distill --online --teacher {toys}/teacher --num-steps 2 --first-seed 4294967000 --out {new}",
        "seeds from 4294967000 on is 4294973143; allowed: 0 to 4294967295",
    ),
    "options of the other source": (
        "distill --trajectories {toys}/grid_store --replay-updates 2 --out {new}",
        "--replay-updates has no meaning without --online",
    ),
    "guidance of a store": (
        "distill --trajectories {toys}/grid_store --cfg-scale 2 --out {new}",
        "--cfg-scale has no meaning without --online",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_meant_is_refused_in_one_line(
    case: str, toys: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    text, answer = REFUSALS[case]
    words = text.format(toys=toys, new=tmp_path / "new").split()
    assert answer in refused(*words, "--device", "cpu")


def test_a_teacher_that_yields_no_number_stops_the_training_in_one_line(
    workspace: Path, tmp_path: Path, complaint: Callable[..., str]
) -> None:
    teacher = workspace / "teacher"
    tensors = load_file(teacher / "model.safetensors")
    tensors["x_embedder.bias"].fill_(1e38)
    save_model(teacher, "teacher", load_config(teacher, "teacher"), tensors)
    options = ["distill", "--teacher", workspace / "teacher", "--online", "--num-steps", 2, "--device", "cpu"]
    line = complaint(*options, "--out", tmp_path / "new")
    assert "yields infinite or not-a-number float32 states" in line


def test_a_preset_solves_online_what_it_would_collect_and_what_is_given_wins(
    toys: Path, made: Callable[..., str], tmp_path: Path
) -> None:
    options = ["distill", "--preset", "sit-xl-2", "--history-blocks", 1, "--teacher", toys / "teacher"]
    options += ["--cfg-channels", 1]  # The digits have one; latents have four.
    plan = json.loads(made(*options, "--online", "--out", tmp_path / "new", "--dry-run"))
    preset = find_preset("sit-xl-2")
    assert plan["online"]["num_teacher_steps"] == preset.collect.num_teacher_steps == 25
    assert plan["online"]["guidance"]["cfg_scale"] == preset.collect.guidance.cfg_scale
    assert plan["online"]["solver"] == preset.collect.solver
    assert plan["grid"] == [0, 10, 15, 20, 25]
    plan = json.loads(made(*options, "--online", "--cfg-scale", 2.5, "--out", tmp_path / "new", "--dry-run"))
    assert plan["ode"]["guidance"]["cfg_scale"] == 2.5
    for name, one in DISTILL_PRESETS.items():
        if name in DIGITS:
            assert one.online == ONLINE, name


def test_the_plan_says_what_is_solved(toys: Path, made: Callable[..., str], tmp_path: Path) -> None:
    options = ["distill", "--teacher", toys / "teacher", "--online", "--num-steps", 4, "--cfg-scale", 3]
    plan = json.loads(made(*options, "--num-teacher-steps", 48, "--out", tmp_path / "new", "--dry-run"))
    assert len(plan["ode"]["times"]) == 49
    assert plan["ode"]["guidance"]["cfg_scale"] == 3
    assert plan["online"]["replay_updates"] == 8
    assert plan["cost"]["store_bytes"] == 0, "nothing is stored"
    more = ["--iterations", 41, "--batch-size", 4, "--accumulate", 2, "--pool-batches", 5, "--replay-updates", 8]
    image = made(*options, "--iterations", 1, "--batch-size", 1, "--pool-batches", 1, "--out", tmp_path, "--dry-run")
    cost = json.loads(made(*options, *more, "--out", tmp_path / "new", "--dry-run"))["cost"]
    solved = cost["flop"]["collect"] / json.loads(image)["cost"]["flop"]["collect"]
    assert solved == 4 * (5 + 1), "a whole pool, and one batch of the next"
    assert plan["grid"] == [0, 12, 24, 36, 48]
    assert "trajectories" not in plan
    assert load_manifest(toys / "store")[0].teacher.hash == plan["teacher"]
