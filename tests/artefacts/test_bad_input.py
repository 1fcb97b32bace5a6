"""Bad input: exit status 2, one line that says what is wrong and what is allowed, and no file touched."""

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ard.core.sharded.shard import open_shard, write_shard
from ard.core.sharded.store import write_record
from ard.networks.transformer import SIZES
from ard.trajectories.manifest import load_manifest

Refused = Callable[..., str]

DEPTH = SIZES["tiny"][0]

# What a user types in the folder of the toys, {new} being elsewhere; and what the answer must contain.
REFUSALS = {
    "unknown command": (
        "destill --out {new}",
        "unknown command 'destill'; did you mean distill? ard --help shows all",
    ),
    "unknown option": ("teach --out {new} --iteration 3", "--iteration"),
    "unknown option of no command": ("--verbose", "unknown command '--verbose'"),
    "missing option": ("collect --out {new}", "--teacher"),
    "option without a value": ("teach --out", "--out"),
    "no number": (
        "teach --out {new} --learning-rate fast",
        "--learning-rate: could not convert string to float: 'fast'",
    ),
    "no whole number": ("collect --teacher teacher --out {new} --num 3.5", "--num"),
    "no choice": ("collect --teacher teacher --out {new} --dtype int8", "float16"),
    "unknown preset": (
        "distill --preset arp --trajectories store --out {new}",
        "unknown preset 'arp'; allowed: ard, step, kd",
    ),
    "unknown preset, joined": ("distill --preset=arp --trajectories store --out {new}", "unknown preset 'arp'"),
    "unknown data": ("teach --out {new} --data imagenet", "unknown data set 'imagenet'; allowed: digits"),
    "unknown model": ("teach --out {new} --model giant/2", "unknown model 'giant/2'; allowed: one of tiny"),
    "unknown patch": ("teach --out {new} --model tiny/16", "unknown model 'tiny/16'"),
    "label out of range": (
        "sample --student student --labels 3,10 --out {new}.png",
        "label 10 is out of range; allowed: 0 to 9",
    ),
    "labels that are no numbers": ("sample --student student --labels cat --out {new}.png", "'cat' is no number"),
    "negative label": ("sample --student student --labels=-1 --out {new}.png", "no number or range"),
    "seeds backwards": (
        "sample --student student --seeds 9-0 --out {new}.png",
        "the range 9-0 runs backwards; write 0-9",
    ),
    "seeds that are no numbers": ("sample --student student --seeds 1-2-3 --out {new}.png", "--seeds 1-2-3"),
    "seeds in another script": ("sample --student student --seeds ² --out {new}.png", "--seeds ²"),
    "seeds beyond 64 bits": ("sample --student student --seeds 99999999999999999999 --out {new}.png", "--seeds 9999"),
    "no seeds": ("sample --student student --seeds= --out {new}.png", "--seeds"),
    "samples in an unknown format": ("sample --student student --out {new}.jpg", "allowed are a name ending in .png"),
    "S above the teacher's steps": (
        "distill --trajectories store --num-steps 13 --out {new}",
        "13 student steps are more than the teacher's 12",
    ),
    "S that the stored grid lacks": (
        "distill --trajectories grid_store --num-steps 3 --out {new}",
        "the stored grid 0,3,6,9,12 lacks 4,8",
    ),
    "no S for a store of all points": ("distill --trajectories store --out {new}", "with --num-steps"),
    "S below 1": ("distill --trajectories store --num-steps 0 --out {new}", "num_steps is 0; at least 1"),
    "S that contradicts the grid": (
        "distill --trajectories store --num-steps 4 --grid 0 6 12 --iterations 1 --out {new}",
        "--num-steps 4 does not fit --grid, which has 2 steps",
    ),
    "S larger than the teacher's": ("collect --teacher teacher --num-steps 48 --out {new}", "48 student steps"),
    "grid that does not rise": ("distill --trajectories store --grid 0 6 3 12 --out {new}", "grid 0,6,3,12 must rise"),
    "grid beyond the teacher": ("collect --teacher teacher --grid 0 50 --out {new}", "grid 0,50 must rise"),
    "grid that the store lacks": ("distill --trajectories grid_store --grid 0 5 12 --out {new}", "lacks 5"),
    "N larger than L": (
        "distill --trajectories grid_store --history-blocks 99 --out {new}",
        f"history_blocks is 99; the network has {DEPTH} blocks: 0 to {DEPTH}, or -1",
    ),
    "N below -1": ("distill --trajectories grid_store --history-blocks -2 --out {new}", "history_blocks is -2"),
    "states that the store lacks": ("distill --trajectories grid_store --state x_0_hat --out {new}", "no x_0_hat"),
    "no student, but a teacher": ("sample --student teacher --out {new}.png", "teacher is no student"),
    "no student, but nothing": ("sample --student nowhere --out {new}.png", "no student: it has no config.json"),
    "no teacher, but a student": ("collect --teacher student --out {new}", "student is no teacher"),
    "no teacher, but nothing": ("collect --teacher nowhere --out {new}", "no teacher: it has no config.json"),
    "no store, but a teacher": ("distill --trajectories teacher --out {new}", "is no trajectory store"),
    "no store to look at": ("trajectories info teacher", "is no trajectory store"),
    "no store to check": ("trajectories verify nowhere", "is no trajectory store"),
    "a student to evaluate that is none": ("evaluate --student student teacher", "teacher is no student"),
    "evaluate with the wrong teacher": (
        "evaluate --student student --teacher other_teacher --references {new} --num 100",
        "is not the student's",
    ),
    "distill with the wrong teacher": (
        "distill --trajectories grid_store --teacher other_teacher --out {new}",
        "did not make",
    ),
    "collect, negative count": ("collect --teacher teacher --out {new} --num -5", "num is -5; at least 1"),
    "collect, no trajectories": ("collect --teacher teacher --out {new} --num 0", "num is 0"),
    "collect, negative batch": ("collect --teacher teacher --out {new} --batch-size -1", "batch_size is -1"),
    "collect, empty shards": ("collect --teacher teacher --out {new} --shard-size 0", "shard_size is 0"),
    "collect, negative workers": ("collect --teacher teacher --out {new} --workers -1", "workers is -1"),
    "collect, negative seed": ("collect --teacher teacher --out {new} --seed -1", "seed is -1"),
    "collect, seed beyond 64 bits": (
        "collect --teacher teacher --out {new} --seed 99999999999999999999 --num 2 --workers 1",
        "seed is 99999999999999999999",
    ),
    "collect, no states": ("collect --teacher teacher --out {new} --states", "--states is empty"),
    "collect, no teacher steps": (
        "collect --teacher teacher --out {new} --num-teacher-steps 0",
        "0 teacher steps: allowed are 1 to 1000",
    ),
    "teach, no updates": ("teach --out {new} --iterations 0", "iterations is 0; at least 1"),
    "teach, negative batch": ("teach --out {new} --batch-size -1", "batch_size is -1; at least 1"),
    "teach, negative warm-up": ("teach --out {new} --warmup -1", "warmup is -1"),
    "teach, endless learning rate": ("teach --out {new} --learning-rate inf", "learning_rate is inf"),
    "teach, decay of 1": ("teach --out {new} --ema-decay 1", "ema_decay is 1"),
    "teach, all labels dropped": ("teach --out {new} --label-dropout 1", "label_dropout is 1"),
    "teach, no diffusion steps": ("teach --out {new} --num-train-steps 0 --iterations 1", "num_train_steps is 0"),
    "teach, negative diffusion steps": (
        "teach --out {new} --kind vp --num-train-steps -5 --iterations 1",
        "num_train_steps is -5",
    ),
    "distill, no updates": ("distill --trajectories grid_store --iterations 0 --out {new}", "iterations is 0"),
    "distill, share above 1": ("distill --trajectories grid_store --own-history 2 --out {new}", "own_history is 2"),
    "sample, negative batch": ("sample --student student --batch-size -1 --out {new}.png", "batch_size is -1"),
    "evaluate, negative count": ("evaluate --student student --num -5", "num is -5; at least 1"),
    "evaluate, too few": ("evaluate --student student --num 99", "num is 99"),
    "evaluate, negative batch": ("evaluate --student student --batch-size -1", "batch_size is -1"),
    "evaluate, nobody": ("evaluate --student", "--student is empty"),
    "history blocks without a history": (
        "distill --trajectories grid_store --mask diagonal --history-blocks 3 --out {new}",
        "--history-blocks 3 has no meaning with --mask diagonal",
    ),
    "a grid of all points": (
        "collect --teacher teacher --keep all --grid 0 12 24 --out {new}",
        "--grid has no meaning with --keep all",
    ),
    "own history with one step": (
        "distill --preset kd --trajectories store --own-history 0.5 --out {new}",
        "--own-history 0.5 has no meaning with one step",
    ),
    "guidance below 1": ("collect --teacher teacher --cfg-scale 0.5 --out {new}", "cfg_scale is 0.5"),
    "guidance that is no number": ("collect --teacher teacher --cfg-scale nan --num 1 --out {new}", "cfg_scale is nan"),
    "guidance of too many channels": ("collect --teacher teacher --cfg-channels 2 --out {new}", "cfg_channels is 2"),
    "ddim for flow": ("collect --teacher teacher --solver ddim --out {new}", "solver ddim does not fit"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(toys: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(toys)
    typed, words = REFUSALS[case]
    assert words in refused(*typed.format(new=tmp_path / "new").split())


class TestMachine:
    """What the machine lacks."""

    @pytest.mark.parametrize(
        "typed", ["teach", "collect --teacher teacher", "sample --student student", "distill --trajectories store"]
    )
    def test_a_device_that_is_not_there(
        self, toys: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, typed: str
    ) -> None:
        monkeypatch.chdir(toys)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        line = refused(*typed.split(), "--out", tmp_path / "new", "--device", "cuda")
        assert "device cuda is not available on this machine; available: " in line

    def test_a_package_that_is_not_installed_is_named_with_its_extra(
        self, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sklearn", None)
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        line = refused("teach", "--out", tmp_path / "new")
        assert "scikit-learn" in line
        assert "[demo]" in line


class TestDemo:
    """The demo tells what is wrong before it works for minutes."""

    @pytest.fixture(autouse=True)
    def _idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ard.studies.demo.run_missing", lambda *_, **__: pytest.fail("the work was begun"))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--num-seeds 0", "num_seeds is 0"),
            ("--jobs -1", "jobs is -1"),
            ("--teacher-iterations 0", "teacher_iterations is 0"),
            ("--num-evaluation 99", "num_evaluation is 99"),
            ("--num-steps 25", "25 student steps are more than the teacher's 24"),
            ("--seed -1", "seed is -1"),
            ("--device cuda", "device cuda is not available"),
        ],
    )
    def test_options_that_cannot_be_meant(
        self, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, options: str, words: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert words in refused("demo", "--out", tmp_path / "new", *options.split())

    @pytest.mark.parametrize(
        ("modules", "package"), [(("matplotlib",), "matplotlib"), (("sklearn", "sklearn.datasets"), "scikit-learn")]
    )
    def test_a_package_that_is_not_installed(
        self,
        tmp_path: Path,
        refused: Refused,
        monkeypatch: pytest.MonkeyPatch,
        modules: tuple[str, ...],
        package: str,
    ) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
        line = refused("demo", "--out", tmp_path / "new")
        assert package in line
        assert "[demo]" in line


def full_disk(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    """A disk that is full: one line, the old files as they were, nothing half-written."""

    @pytest.fixture(autouse=True)
    def _old(self, tmp_path: Path) -> None:
        for name in ("grid.png", "samples.npz"):
            (tmp_path / name).write_bytes(b"old")

    @pytest.mark.parametrize("name", ["grid.png", "samples.npz"])
    def test_samples(
        self, toys: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(os, "fsync", full_disk)
        options = ["--student", toys / "student", "--overwrite", "--out", tmp_path / name]
        assert "No space left on device" in refused("sample", *options)

    def test_a_store_that_grows(
        self, workspace: Path, refused: Refused, collect_options: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", full_disk)
        arguments = ["collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store"]
        assert "No space left on device" in refused(*arguments, *collect_options, "--num", 30)

    def test_a_new_teacher(
        self, tmp_path: Path, refused: Refused, teach_options: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", full_disk)
        assert "No space left on device" in refused("teach", "--out", tmp_path / "new", *teach_options)

    def test_a_training_that_has_begun_goes_on_when_there_is_space(
        self,
        workspace: Path,
        complaint: Refused,
        made: Callable[..., str],
        distill_options: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        arguments = ["distill", "--trajectories", workspace / "store", "--out", workspace / "new", *distill_options]
        made("distill", "--trajectories", workspace / "store", "--out", workspace / "whole", *distill_options)
        with monkeypatch.context() as patch:
            patch.setattr("ard.training.state.write_atomically", lambda *_: full_disk(0))
            assert "No space left on device" in complaint(*arguments)
        made(*arguments)
        new, whole = (workspace / name / "model.safetensors" for name in ("new", "whole"))
        assert new.read_bytes() == whole.read_bytes()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_text(path.read_text()[:50]),
    "empty": lambda path: path.write_text(""),
    "binary": lambda path: path.write_bytes(b"\xff\x00\xfe"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "another kind": lambda path: edit(path, kind="vase"),
    "another schema": lambda path: edit(path, schema=99),
    "a field too many": lambda path: edit(path, network=lambda value: {**value, "colour": 3}),
    "a field too few": lambda path: edit(path, network=lambda value: {"depth": value["depth"]}),
    "a text for a number": lambda path: edit(path, network=lambda value: {**value, "width": "64"}),
    "a number for an object": lambda path: edit(path, diffusion=3),
    "a kind of diffusion that is none": lambda path: edit(path, diffusion=lambda value: {**value, "kind": "steam"}),
    "another depth": lambda path: edit(path, network=lambda value: {**value, "depth": 99}),
    "a width of nothing": lambda path: edit(path, network=lambda value: {**value, "width": 0}),
    "a width that does not fit": lambda path: edit(path, network=lambda value: {**value, "width": 66}),
}


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, by value or by function."""
    plain = json.loads(path.read_text())
    plain |= {key: change(plain[key]) if callable(change) else change for key, change in changes.items()}
    path.write_text(json.dumps(plain))


# A file of the toys and a field in it that is a size, or a list of sizes.
SIZES_IN_FILES = [
    *(f"teacher/config.json network {name}" for name in ("depth", "width", "latent_size", "num_classes", "mlp_ratio")),
    *(f"student/config.json {name}" for name in ("student num_steps", "network depth", "grid", "ode times")),
    *(f"store/manifest.json {name}" for name in ("num", "shard_size", "kept", "shape", "num_classes", "ode times")),
]


class TestDamage:
    """Folders whose files are damaged."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_teacher_with_a_damaged_configuration(self, workspace: Path, refused: Refused, damage: str) -> None:
        DAMAGES[damage](workspace / "teacher" / "config.json")
        line = refused("collect", "--teacher", workspace / "teacher", "--out", workspace / "new")
        assert str(workspace / "teacher") in line

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_student_with_a_damaged_configuration(self, workspace: Path, refused: Refused, damage: str) -> None:
        DAMAGES[damage](workspace / "student" / "config.json")
        line = refused("sample", "--student", workspace / "student", "--out", workspace / "new.png")
        assert str(workspace / "student") in line

    @pytest.mark.parametrize("key", ["data", "network", "diffusion", "kind", "schema"])
    def test_a_teacher_whose_configuration_lacks_a_key(self, workspace: Path, refused: Refused, key: str) -> None:
        path = workspace / "teacher" / "config.json"
        plain = json.loads(path.read_text())
        del plain[key]
        path.write_text(json.dumps(plain))
        assert str(workspace / "teacher") in refused("collect", "--teacher", path.parent, "--out", workspace / "new")

    @pytest.mark.parametrize(
        "change",
        [{"schema": 2}, {"num": "20"}, {"kept": 12}, {"kept": [0, "3"]}, {"shards": [1]}, {"states": ["x_1"]}],
        ids=str,
    )
    def test_a_store_with_a_damaged_manifest(self, workspace: Path, refused: Refused, change: dict[str, Any]) -> None:
        edit(workspace / "store" / "manifest.json", **change)
        for arguments in (
            ["trajectories", "info", workspace / "store"],
            ["trajectories", "verify", workspace / "store"],
            ["distill", "--trajectories", workspace / "store", "--num-steps", 2, "--out", workspace / "new"],
        ):
            assert "manifest.json" in refused(*arguments)

    @pytest.mark.parametrize("place", SIZES_IN_FILES)
    def test_a_size_that_cannot_be_meant_is_refused_before_anything_has_it(
        self, workspace: Path, refused: Refused, place: str
    ) -> None:
        name, *fields, last = place.split()
        path = workspace / name
        plain = inner = json.loads(path.read_text())
        for field in fields:
            inner = inner[field]
        is_list = isinstance(inner[last], list)
        command = {
            "teacher/config.json": ["collect", "--teacher", workspace / "teacher"],
            "student/config.json": ["sample", "--student", workspace / "student"],
            "store/manifest.json": ["distill", "--num-steps", 2, "--trajectories", workspace / "store"],
        }[name]
        for size in (-1, 0, 10**12, 10**19, 10**30, 1e300, math.nan):
            inner[last] = [size] if is_list else size
            path.write_text(json.dumps(plain))
            line = refused(*command, "--out", workspace / "new.png", "--device", "cpu")
            assert path.name in line, size

    @pytest.mark.parametrize("size", [0, 5, 1000])
    @pytest.mark.parametrize(
        "typed",
        [
            "sample --student student --out new.png",
            "evaluate --student student --references new --num 100",
            "collect --teacher teacher --out new",
            "distill --trajectories grid_store --out new",
        ],
    )
    def test_weights_that_are_cut_off(
        self, workspace: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, typed: str, size: int
    ) -> None:
        monkeypatch.chdir(workspace)
        for name in ("student", "teacher"):
            weights = workspace / name / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:size])
        assert "model.safetensors is damaged or half-written" in refused(*typed.split())

    def test_weights_that_are_missing(self, workspace: Path, refused: Refused) -> None:
        (workspace / "student" / "model.safetensors").unlink()
        line = refused("sample", "--student", workspace / "student", "--out", workspace / "new.png")
        assert "model.safetensors does not exist" in line

    def test_weights_of_another_network(self, workspace: Path, refused: Refused) -> None:
        weights = (workspace / "teacher" / "model.safetensors").read_bytes()
        (workspace / "student" / "model.safetensors").write_bytes(weights)
        line = refused("sample", "--student", workspace / "student", "--out", workspace / "new.png")
        assert "model.safetensors is damaged or was changed: its SHA-256 is not the one" in line
        edit(workspace / "student" / "config.json", sha256=hashlib.sha256(weights).hexdigest())
        line = refused("sample", "--student", workspace / "student", "--out", workspace / "new.png")
        assert "does not fit its config.json" in line

    @pytest.mark.parametrize("content", [b"", b"{}", b"garbage" * 100])
    def test_a_shard_that_is_none_given_to_distill(self, workspace: Path, refused: Refused, content: bytes) -> None:
        shard = workspace / "grid_store" / "traj-000001.safetensors"
        shard.write_bytes(content)
        line = refused("distill", "--trajectories", shard.parent, "--out", workspace / "new")
        assert str(shard) in line

    def test_a_shard_that_holds_no_numbers_given_to_distill(
        self, workspace: Path, complaint: Refused, distill_options: list[object]
    ) -> None:
        path = workspace / "grid_store" / "traj-000001.safetensors"
        shard = open_shard(path)
        tensors = {name: shard.read(name) for name in shard.tensors}
        tensors["x_t"][0].fill_(torch.nan)
        write_shard(path, tensors, shard.identity)
        manifest, checksums = load_manifest(path.parent)
        write_record(path.parent, manifest, checksums | {path.name: open_shard(path).header_crc})
        line = complaint("distill", "--trajectories", path.parent, "--out", workspace / "new", *distill_options)
        assert f"{path} holds infinite or not-a-number values" in line
        assert not (workspace / "new" / "config.json").exists()

    def test_a_damaged_checkpoint_given_to_teach(
        self, workspace: Path, refused: Refused, teach_options: list[object]
    ) -> None:
        (workspace / "teacher" / "config.json").unlink()
        (checkpoint,) = (workspace / "teacher" / "checkpoints").iterdir()
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
        assert str(checkpoint) in refused("teach", "--out", workspace / "teacher", *teach_options)


class TestVariancePreserving:
    """What only a VP teacher refuses."""

    def test_heun(
        self, tmp_path: Path, made: Callable[..., str], refused: Refused, teach_options: list[object]
    ) -> None:
        made("teach", "--kind", "vp", "--out", tmp_path / "vp", *teach_options, "--iterations", 1)
        line = refused("collect", "--teacher", tmp_path / "vp", "--solver", "heun", "--out", tmp_path / "new")
        assert "solver heun does not fit the diffusion vp; allowed: ddim" in line
