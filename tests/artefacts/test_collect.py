"""Making a store: whatever happens on the way, it ends with the same bytes."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ard.core.model_folder import load_config, save_model
from ard.core.sharded import making
from ard.trajectories import collect as collecting

Contents = Callable[[Path], dict[str, bytes]]
Made = Callable[..., str]

MANY = ["--num", "40", "--shard-size", "1", "--num-teacher-steps", "12", "--num-steps", "4", "--device", "cpu"]


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("traj-*.safetensors"))


def kill_when(process: "Popen[bytes]", condition: Callable[[], object]) -> None:
    """Kill a process as soon as `condition` holds; it must still be at work then."""
    until = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"


def children_of(parent: int) -> set[int]:
    """The running processes whose parent is `parent`."""
    return {int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _parent(folder) == parent}


def _parent(folder: Path) -> int:
    try:
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:  # It has ended meanwhile.
        return 0
    return 0 if state == "Z" else int(parent)


def running(processes: set[int]) -> set[int]:
    return {process for process in processes if _parent(Path(f"/proc/{process}"))}


def wait_until_gone(processes: set[int]) -> None:
    """The processes must end by themselves; those that do not are killed, so that a failure leaves none behind."""
    until = time.monotonic() + 60  # One that is just starting notices after it has imported torch.
    while running(processes) and time.monotonic() < until:
        time.sleep(0.05)
    orphans = running(processes)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    assert not orphans, "workers live on without their parent"


@pytest.fixture(scope="module")
def undisturbed(
    toys: Path, tmp_path_factory: pytest.TempPathFactory, made: Made, contents: Contents
) -> dict[str, bytes]:
    """What a store of MANY holds when nothing happens on the way."""
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    made("collect", "--teacher", toys / "teacher", "--out", out, *MANY, "--workers", 1)
    assert len(shards_in(out)) == 40
    return neutral(contents(out))


def neutral(content: dict[str, bytes]) -> dict[str, bytes]:
    """Without the way from the store to its teacher, which depends on where the store is."""
    manifest = json.loads(content["manifest.json"])
    manifest["teacher"]["path"] = ""
    return {**content, "manifest.json": json.dumps(manifest, indent=2).encode()}


@pytest.mark.slow
def test_a_collection_killed_at_each_write_ends_with_the_same_bytes(
    toys: Path,
    tmp_path: Path,
    killed: Callable[..., None],
    made: Made,
    contents: Contents,
    collect_options: list[object],
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--shard-size", 2, "--out"]
    # Odd calls flush a file that is not yet in its place, even ones its folder after the rename.
    writes = [f"os.fsync:{call}" for call in range(1, 7)]
    killed([*writes, "ard.core.sharded.making.write_record:1"], *arguments, tmp_path / "killed")
    assert len(shards_in(tmp_path / "killed")) == 10, "only the checksums are missing"
    made(*arguments, tmp_path / "killed")
    made(*arguments, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_collection_killed_again_and_again_ends_with_the_same_bytes(
    toys: Path,
    tmp_path: Path,
    started: Callable[..., "Popen[bytes]"],
    made: Made,
    contents: Contents,
    undisturbed: dict[str, bytes],
) -> None:
    out = tmp_path / "store"
    arguments = ["collect", "--teacher", toys / "teacher", "--out", out, *MANY, "--workers", 1]
    for count in (1, 10):
        kill_when(started(*arguments), lambda count=count: len(shards_in(out)) >= count)
    assert len(shards_in(out)) < 40
    made(*arguments)
    assert neutral(contents(out)) == undisturbed


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize(("moment", "workers"), [("while the workers start", 2), ("after the first shard", 1)])
@pytest.mark.slow
def test_two_workers_killed_and_run_again_end_with_the_same_bytes(
    toys: Path,
    tmp_path: Path,
    started: Callable[..., "Popen[bytes]"],
    made: Made,
    contents: Contents,
    undisturbed: dict[str, bytes],
    moment: str,
    workers: int,
) -> None:
    out, pool = tmp_path / "store", set()
    arguments = ["collect", "--teacher", toys / "teacher", "--out", out, *MANY, "--workers"]
    process = started(*arguments, 2)

    def reached() -> bool:
        pool.update(children_of(process.pid))
        return len(pool) >= 2 and (moment == "while the workers start" or bool(shards_in(out)))

    kill_when(process, reached)
    wait_until_gone(pool)
    assert len(shards_in(out)) < 40
    made(*arguments, workers)
    assert neutral(contents(out)) == undisturbed


class Overlap:
    """Watches `ard collect` in this process: which shard is solved, and which is written, at the same time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.solved = 0
        self.written: list[int] = []
        self.second_is_solved = threading.Event()
        self.solve, self.write = collecting.solve_shard, making.write_shard
        monkeypatch.setattr(collecting, "solve_shard", self.watch_solve)
        monkeypatch.setattr(making, "write_shard", self.watch_write)

    def watch_solve(self, *arguments: Any, **options: Any) -> Any:
        self.solved += 1
        assert len(self.written) >= self.solved - 2, "one shard waits at most"
        tensors = self.solve(*arguments, **options)
        if self.solved == 2:
            self.second_is_solved.set()
        return tensors

    def watch_write(self, path: Path, *arguments: Any) -> None:
        """The first write ends only after the second shard was solved: with one thread it would wait for ever."""
        assert self.second_is_solved.wait(20), "nothing is solved while a shard is written"
        self.write(path, *arguments)
        self.written.append(int(path.stem[-6:]))


def test_the_next_shard_is_solved_while_the_last_one_is_written(
    toys: Path, tmp_path: Path, made: Made, collect_options: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Overlap(monkeypatch)
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path / "store", *collect_options)
    assert watch.written == [0, 1, 2]


def test_a_full_disk_ends_the_work_with_one_line_and_no_further_shard(
    toys: Path,
    tmp_path: Path,
    made: Made,
    complaint: Callable[..., str],
    contents: Contents,
    collect_options: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--shard-size", 4, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(making, "write_shard", full_from_the_second_on(making.write_shard))
        line = complaint(*arguments, tmp_path / "store")
    assert "No space left on device: " in line
    assert "traj-000001.safetensors" in line
    assert [path.name for path in shards_in(tmp_path / "store")] == ["traj-000000.safetensors"]
    made(*arguments, tmp_path / "store")
    made(*arguments, tmp_path / "whole")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def full_from_the_second_on(write: Callable[..., None]) -> Callable[..., None]:
    """A disk on which one shard has room."""

    def limited(path: Path, *arguments: Any) -> None:
        if path.stem != "traj-000000":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *arguments)

    return limited


def test_a_finished_store_is_left_as_it_is(
    workspace: Path, made: Made, contents: Contents, collect_options: list[object]
) -> None:
    before = contents(workspace / "grid_store")
    times = {path: path.stat().st_mtime_ns for path in shards_in(workspace / "grid_store")}
    made("collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store", *collect_options)
    assert contents(workspace / "grid_store") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_leftovers_go_from_a_finished_store_too(
    workspace: Path, made: Made, collect_options: list[object], leftover: Callable[[Path, int], Path], dead: int
) -> None:
    leftover(workspace / "grid_store", dead)
    made("collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store", *collect_options)
    assert not list((workspace / "grid_store").glob(".*"))


def test_a_missing_shard_is_made_again(
    workspace: Path, made: Made, contents: Contents, collect_options: list[object]
) -> None:
    before = contents(workspace / "grid_store")
    (workspace / "grid_store" / "traj-000001.safetensors").unlink()
    made("collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store", *collect_options)
    assert contents(workspace / "grid_store") == before


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another place's": lambda path: path.write_bytes(path.with_name("traj-000000.safetensors").read_bytes()),
    "flipped": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "incomplete"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_told_of_and_made_again(
    workspace: Path,
    command: Callable[..., Any],
    contents: Contents,
    collect_options: list[object],
    damage: str,
    complete: bool,
) -> None:
    store, before = workspace / "grid_store", contents(workspace / "grid_store")
    DAMAGES[damage](store / "traj-000001.safetensors")
    if not complete:
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps({**manifest, "shards": {}}))
    result = command("collect", "--teacher", workspace / "teacher", "--out", store, *collect_options)
    assert (result.returncode, "traj-000001.safetensors is " in result.stderr) == (0, True)
    assert "it is made again" in result.stderr
    assert contents(store) == before


def test_training_refuses_a_store_with_a_flipped_bit(
    workspace: Path, complaint: Callable[..., str], distill_options: list[object]
) -> None:
    flip_a_bit(workspace / "grid_store" / "traj-000001.safetensors")
    arguments = ["distill", "--trajectories", workspace / "grid_store", "--out", workspace / "new", *distill_options]
    line = complaint(*arguments)
    assert "traj-000001.safetensors is damaged: " in line
    assert "does not match its checksum; run the same ard collect command again" in line


def test_a_killed_repair_leaves_a_store_that_calls_itself_incomplete(
    workspace: Path, killed: Callable[..., None], complaint: Callable[..., str], collect_options: list[object]
) -> None:
    flip_a_bit(workspace / "grid_store" / "traj-000001.safetensors")
    arguments = ["collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store", *collect_options]
    killed(["ard.core.sharded.making.write_shard:1"], *arguments)
    assert "traj-000001.safetensors is damaged" in complaint("trajectories", "verify", workspace / "grid_store")
    line = complaint("distill", "--trajectories", workspace / "grid_store", "--out", workspace / "new")
    assert "is incomplete; run the same ard collect command again" in line


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_ranks_share_the_work_and_make_the_same_store(
    toys: Path,
    tmp_path: Path,
    made: Made,
    contents: Contents,
    collect_options: list[object],
    monkeypatch: pytest.MonkeyPatch,
    ranks: tuple[int, int],
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--out"]
    made(*arguments, tmp_path / "whole")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in zip(ranks, (2 - ranks[0], 3), strict=True):
        monkeypatch.setenv("RANK", str(rank))
        made(*arguments, tmp_path / "shared")
        assert len(shards_in(tmp_path / "shared")) == count, "shard k belongs to rank k mod 2"
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_a_part_of_the_ranks_leaves_a_store_that_calls_itself_incomplete(
    toys: Path,
    tmp_path: Path,
    made: Made,
    complaint: Callable[..., str],
    collect_options: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path, *collect_options)
    assert json.loads(made("trajectories", "info", tmp_path))["complete"] is False
    monkeypatch.delenv("WORLD_SIZE")
    assert "is incomplete" in complaint("distill", "--trajectories", tmp_path, "--out", tmp_path / "student")


def test_a_larger_number_grows_the_store(
    toys: Path, tmp_path: Path, made: Made, contents: Contents, collect_options: list[object]
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options]
    made(*arguments, "--out", tmp_path / "grown", "--num", 12)
    old, first = contents(tmp_path / "grown"), (tmp_path / "grown" / "traj-000000.safetensors").stat()
    made(*arguments, "--out", tmp_path / "grown", "--num", 20)
    made(*arguments, "--out", tmp_path / "direct", "--num", 20)
    grown = contents(tmp_path / "grown")
    assert grown == contents(tmp_path / "direct")
    assert grown["traj-000000.safetensors"] == old["traj-000000.safetensors"]
    assert (tmp_path / "grown" / "traj-000000.safetensors").stat().st_mtime_ns == first.st_mtime_ns, "it stayed"


def test_fewer_trajectories_than_were_begun_can_be_asked_for(
    toys: Path,
    tmp_path: Path,
    made: Made,
    killed: Callable[..., None],
    contents: Contents,
    collect_options: list[object],
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", *collect_options, "--out"]
    killed(["ard.core.sharded.making.write_shard:3"], *arguments, tmp_path / "store", "--num", 40)
    made(*arguments, tmp_path / "store", "--num", 12)
    made(*arguments, tmp_path / "direct", "--num", 12)
    assert contents(tmp_path / "store") == contents(tmp_path / "direct")


def test_shards_beyond_a_smaller_number_stay_for_a_larger_one(
    workspace: Path, made: Made, contents: Contents, collect_options: list[object]
) -> None:
    store, before = workspace / "grid_store", contents(workspace / "grid_store")
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "num": 40, "shards": {}}))
    arguments = ["collect", "--teacher", workspace / "teacher", "--out", store, *collect_options]
    made(*arguments, "--num", 8)
    assert "8 trajectories in 1 shards, all whole" in made("trajectories", "verify", store)
    made(*arguments)
    assert contents(store) == before


def test_a_smaller_number_is_refused(toys: Path, refused: Callable[..., str], collect_options: list[object]) -> None:
    line = refused("collect", "--teacher", toys / "teacher", "--out", toys / "grid_store", *collect_options, "--num", 8)
    assert "holds 20 trajectories, more than the 8 asked for" in line


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--num-steps", 2], "kept [0, 3, 6, 9, 12] → [0, 6, 12]"),
        (["--grid", 0, 3, 6, 10, 12], "kept [0, 3, 6, 9, 12] → [0, 3, 6, 10, 12]"),
        (["--num-teacher-steps", 24], "ode.times"),
        (["--cfg-scale", 2], "ode.guidance.cfg_scale 1.5 → 2.0"),
        (["--cfg-channels", 0], "ode.guidance.cfg_channels -1 → 0"),
        (["--cfg-interval", 0.2, 0.8], "ode.guidance.cfg_interval None → [0.2, 0.8]"),
        (["--solver", "heun"], "ode.solver euler → heun"),
        (["--solver", "dpmpp_2m"], "ode.solver euler → dpmpp_2m"),
        (["--dtype", "float32"], "dtype float16 → float32"),
        (["--states", "x_0_hat"], "states ['x_t'] → ['x_0_hat']"),
        (["--seed", 5], "first_seed 0 → 5"),
        (["--shard-size", 4], "shard_size 8 → 4"),
    ],
)
def test_other_trajectories_in_the_same_folder_are_refused_with_the_difference(
    toys: Path, refused: Callable[..., str], collect_options: list[object], options: list[object], named: str
) -> None:
    arguments = ["collect", "--teacher", toys / "teacher", "--out", toys / "grid_store", *collect_options]
    line = refused(*arguments, *options)
    assert "grid_store holds other trajectories" in line
    assert named in line


def test_another_teacher_in_the_same_folder_is_refused(
    toys: Path, refused: Callable[..., str], collect_options: list[object]
) -> None:
    line = refused("collect", "--teacher", toys / "other_teacher", "--out", toys / "grid_store", *collect_options)
    assert "teacher.hash" in line
    assert "ode" not in line, "nothing else differs"


def test_a_moved_teacher_is_the_same_teacher(
    workspace: Path, made: Made, contents: Contents, collect_options: list[object]
) -> None:
    before = neutral(contents(workspace / "grid_store"))
    (workspace / "teacher").rename(workspace / "moved")
    made("collect", "--teacher", workspace / "moved", "--out", workspace / "grid_store", *collect_options)
    after = contents(workspace / "grid_store")
    assert json.loads(after["manifest.json"])["teacher"]["path"] == "../moved"
    assert neutral(after) == before


def test_a_folder_with_files_of_others_is_refused(
    workspace: Path, refused: Callable[..., str], collect_options: list[object]
) -> None:
    line = refused("collect", "--teacher", workspace / "teacher", "--out", workspace / "teacher", *collect_options)
    assert "holds other files and no manifest.json" in line


def test_shards_without_their_manifest_are_refused(
    workspace: Path, refused: Callable[..., str], collect_options: list[object]
) -> None:
    (workspace / "store" / "manifest.json").unlink()
    line = refused("collect", "--teacher", workspace / "teacher", "--out", workspace / "store", *collect_options)
    assert "holds other files and no manifest.json" in line


def test_a_foreign_shard_in_the_place_of_a_missing_one_is_refused(
    workspace: Path, complaint: Callable[..., str], collect_options: list[object]
) -> None:
    foreign = workspace / "grid_store" / "traj-000001.safetensors"
    foreign.write_bytes((workspace / "store" / foreign.name).read_bytes())
    line = complaint("collect", "--teacher", workspace / "teacher", "--out", workspace / "grid_store", *collect_options)
    assert f"{foreign} is foreign" in line
    assert foreign.read_bytes() == (workspace / "store" / foreign.name).read_bytes(), "it is not overwritten"


def test_a_teacher_that_yields_no_numbers_leaves_no_shard(
    workspace: Path, complaint: Callable[..., str], collect_options: list[object]
) -> None:
    change_last_bias(workspace / "teacher", 3e38)  # Finite, but not what comes of it.
    line = complaint("collect", "--teacher", workspace / "teacher", "--out", workspace / "new", *collect_options)
    assert "../teacher yields" in line
    assert not shards_in(workspace / "new")


def test_a_teacher_whose_states_are_too_large_for_the_stored_precision_leaves_no_shard(
    workspace: Path, complaint: Callable[..., str], collect_options: list[object]
) -> None:
    change_last_bias(workspace / "teacher", 1e6)
    line = complaint("collect", "--teacher", workspace / "teacher", "--out", workspace / "new", *collect_options)
    assert "../teacher yields" in line
    assert "float16" in line
    assert not shards_in(workspace / "new")


def change_last_bias(teacher: Path, value: float) -> None:
    """Let a teacher predict `value` everywhere, or near it."""
    weights = load_file(teacher / "model.safetensors")
    weights["final_layer.linear.bias"] = torch.full_like(weights["final_layer.linear.bias"], value)
    save_model(teacher, "teacher", load_config(teacher, "teacher"), weights)
