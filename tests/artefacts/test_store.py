"""The trajectory store: what is written, how it is read, and how damage is found."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.core.sharded.rows import OPEN_FILES
from ard.core.sharded.shard import open_shard, write_shard
from ard.core.sharded.store import write_record
from ard.student.student import StateKind
from ard.teacher.teacher import load_teacher, noise_for_seeds, solve_pf_ode
from ard.trajectories.manifest import load_manifest
from ard.trajectories.reader import TrajectoryReader, verify

CPU = torch.device("cpu")
X_T, X_0_HAT = StateKind.X_T, StateKind.X_0_HAT


def example(dtype: torch.dtype) -> dict[str, Tensor]:
    states = torch.randn(5, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"x_t": states, "seed": torch.arange(5), "label": torch.arange(5) % 3}


def solved(toys: Path, *, seeds: range, batch: int) -> dict[StateKind, Tensor]:
    """The trajectories of `seeds`, straight from the solver, at every point of the teacher's grid."""
    teacher, ode = load_teacher(toys / "teacher", CPU), load_manifest(toys / "store")[0].ode
    parts = [seeds[i : i + batch] for i in range(0, len(seeds), batch)]
    kept = tuple(range(13))
    solutions = [
        solve_pf_ode(teacher, noise_for_seeds(part, (1, 8, 8)), torch.tensor(part) % 10, ode=ode, kept=kept)
        for part in parts
    ]
    return {state: torch.cat([getattr(solution, str(state)) for solution in solutions]) for state in StateKind}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_shard_comes_back_in_its_own_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = example(dtype)
    write_shard(tmp_path / "shard", tensors, "me")
    shard = open_shard(tmp_path / "shard")
    for name, tensor in tensors.items():
        assert shard.read(name).dtype == tensor.dtype
        assert torch.equal(shard.read(name), tensor)
    assert (shard.identity, shard.damaged()) == ("me", [])


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_shard(tmp_path / name, example(torch.float16), "me")
    write_shard(tmp_path / "third", example(torch.float16), "you")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "third").read_bytes()


def test_few_files_are_open_at_a_time(
    toys: Path, tmp_path: Path, made: Callable[..., str], collect_options: list[object]
) -> None:
    options = [*collect_options, "--num", 80, "--shard-size", 1, "--num-teacher-steps", 2, "--num-steps", 1]
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path, *options)
    before = open_files()
    reader = TrajectoryReader(tmp_path, state=X_T, num_steps=1)
    reader.read(torch.arange(80))
    assert open_files() == before + OPEN_FILES
    del reader
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("state", list(StateKind))
def test_the_store_holds_what_the_solver_yields(toys: Path, state: StateKind) -> None:
    whole = TrajectoryReader(toys / "store", state=state, num_steps=12).read(torch.arange(20)).states
    assert whole.dtype == torch.float16, "the default"
    assert torch.equal(whole, solved(toys, seeds=range(20), batch=4)[state].half())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_precisions_are_kept_when_asked_for(
    toys: Path, tmp_path: Path, dtype: str, made: Callable[..., str], collect_options: list[object]
) -> None:
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path, *collect_options, "--num", 4, "--dtype", dtype)
    states = TrajectoryReader(tmp_path, state=X_T, num_steps=4).read(torch.arange(4)).states
    expected = solved(toys, seeds=range(4), batch=4)[X_T][:, ::3]
    assert torch.equal(states, expected.to(getattr(torch, dtype)))


def test_both_kinds_of_state_start_from_the_noise_of_the_seed(toys: Path) -> None:
    for state in StateKind:
        batch = TrajectoryReader(toys / "store", state=state, num_steps=4).read(torch.tensor([17, 3]))
        assert torch.equal(batch.states[:, 0], noise_for_seeds(torch.tensor([17, 3]), (1, 8, 8)).half())


def test_clean_estimates_are_no_states_before_the_end(toys: Path) -> None:
    x_t, x_0_hat = (
        TrajectoryReader(toys / "store", state=state, num_steps=4).read(torch.arange(20)).states.float()
        for state in StateKind
    )
    assert (x_t - x_0_hat)[:, 1:4].abs().mean() > 0.1
    assert torch.allclose(x_t[:, 4], x_0_hat[:, 4], atol=1e-2), "at time 0 the state is the clean estimate"


def test_rows_come_in_any_order_across_shards(toys: Path) -> None:
    reader = TrajectoryReader(toys / "store", state=X_T, num_steps=4)
    whole = reader.read(torch.arange(20))
    order = torch.tensor([19, 0, 8, 7, 7, 15, 16, 1, 19])
    batch = reader.read(order)
    assert torch.equal(batch.states, whole.states[order])
    assert torch.equal(batch.labels, whole.labels[order])


def test_labels_are_the_seeds_modulo_the_number_of_classes(
    toys: Path, tmp_path: Path, made: Callable[..., str], collect_options: list[object]
) -> None:
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path, *collect_options, "--num", 12, "--seed", 97)
    reader = TrajectoryReader(tmp_path, state=X_T, num_steps=1)
    assert reader.labels.tolist() == [seed % 10 for seed in range(97, 109)]
    shards = range(reader.manifest.num_shards)
    for name, values in (("seed", range(97, 109)), ("label", reader.labels.tolist())):
        assert torch.cat([reader.shards.tensor(shard, name) for shard in shards]).tolist() == list(values)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 6, 12])
def test_a_store_of_all_points_serves_every_divisor(toys: Path, num_steps: int) -> None:
    whole = TrajectoryReader(toys / "store", state=X_T, num_steps=12)
    reader = TrajectoryReader(toys / "store", state=X_T, num_steps=num_steps)
    points = list(range(0, 13, 12 // num_steps))
    assert torch.equal(reader.read(torch.arange(20)).states, whole.read(torch.arange(20)).states[:, points])
    assert reader.tau == tuple(whole.tau[point] for point in points)


def test_a_store_of_all_points_serves_a_grid_of_ones_own(toys: Path) -> None:
    reader = TrajectoryReader(toys / "store", state=X_T, num_steps=3, grid=(0, 2, 7, 12))
    whole = TrajectoryReader(toys / "store", state=X_T, num_steps=12).read(torch.arange(20)).states
    assert torch.equal(reader.read(torch.arange(20)).states, whole[:, [0, 2, 7, 12]])
    assert reader.tau == pytest.approx((1, 10 / 12, 5 / 12, 0))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_store_of_four_steps_serves_one_two_and_four(toys: Path, num_steps: int) -> None:
    small = TrajectoryReader(toys / "grid_store", state=X_T, num_steps=num_steps)
    large = TrajectoryReader(toys / "store", state=X_T, num_steps=num_steps)
    assert small.tau == large.tau
    assert torch.equal(small.read(torch.arange(20)).states, large.read(torch.arange(20)).states)


def test_a_store_of_four_steps_refuses_three_and_says_what_it_lacks(toys: Path) -> None:
    message = "3 steps need the teacher's points 0,4,8,12, and the stored grid 0,3,6,9,12 lacks 4,8"
    with pytest.raises(InputError, match=message) as refusal:
        TrajectoryReader(toys / "grid_store", state=X_T, num_steps=3)
    assert "\n" not in str(refusal.value)


def test_states_that_were_not_stored_are_refused(toys: Path) -> None:
    with pytest.raises(InputError, match="has no x_0_hat states, only x_t"):
        TrajectoryReader(toys / "grid_store", state=X_0_HAT, num_steps=2)


def test_an_incomplete_store_is_refused(workspace: Path) -> None:
    manifest, _ = load_manifest(workspace / "store")
    write_record(workspace / "store", manifest, {})
    with pytest.raises(InputError, match="is incomplete"):
        TrajectoryReader(workspace / "store", state=X_T, num_steps=2)
    assert "is incomplete" in verify(workspace / "store")[0]


def test_a_shard_with_no_numbers_is_named_when_it_is_read(workspace: Path) -> None:
    put_nan(workspace / "store" / "traj-000001.safetensors")
    reader = TrajectoryReader(workspace / "store", state=X_T, num_steps=2)
    good, bad = torch.tensor([0, 19]), torch.tensor([0, 8])
    reader.require_finite(reader.read(good), good)
    with pytest.raises(InputError, match=r"traj-000001\.safetensors holds infinite or not-a-number"):
        reader.require_finite(reader.read(bad), bad)


def put_nan(path: Path) -> None:
    """Publish a shard again, one value in its first trajectory being no number, with checksums that match."""
    shard = open_shard(path)
    tensors = {name: shard.read(name) for name in shard.tensors}
    tensors["x_t"][0].view(-1)[0] = torch.nan
    write_shard(path, tensors, shard.identity)
    manifest, checksums = load_manifest(path.parent)
    write_record(path.parent, manifest, checksums | {path.name: open_shard(path).header_crc})


def flip_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


def empty_of_tensors(path: Path) -> None:
    path.unlink()
    save_file({}, path)


def from_another_store(path: Path) -> None:
    shutil.copy(path.parent.parent / "grid_store" / path.name, path)


def from_another_place(path: Path) -> None:
    shutil.copy(path.with_name("traj-000000.safetensors"), path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip_in_the_middle, "does not match its checksum"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: its size"),
    "cut in its header": (lambda path: path.write_bytes(path.read_bytes()[:20]), "is damaged: its header"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is damaged: its size"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged: its header"),
    "without tensors": (empty_of_tensors, "no shard of ard's"),
    "no safetensors": (lambda path: path.write_bytes(b"\x08" + 7 * b"\0" + b"notjson!"), "no shard of ard's"),
    "nested": (lambda path: path.write_bytes(b"\x10\x27" + 6 * b"\0" + 10_000 * b"["), "no shard of ard's"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "another store's": (from_another_store, "is foreign"),
    "another place's": (from_another_place, "of another place"),
    "not a number": (put_nan, "not-a-number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_the_damaged_shard(workspace: Path, complaint: Callable[..., str], damage: str) -> None:
    path = workspace / "store" / "traj-000001.safetensors"
    inflict, words = DAMAGES[damage]
    inflict(path)
    line = complaint("trajectories", "verify", workspace / "store")
    assert str(path) in line
    assert any(words in problem for problem in verify(workspace / "store"))
    assert all(str(path) in problem for problem in verify(workspace / "store")), "the other shards are whole"


def test_verify_names_every_problem(
    workspace: Path, command: Callable[..., "object"], complaint: Callable[..., str]
) -> None:
    store = workspace / "store"
    flip_in_the_middle(store / "traj-000000.safetensors")
    (store / "traj-000002.safetensors").unlink()
    shutil.copy(store / "traj-000001.safetensors", store / "extra.safetensors")
    last = complaint("trajectories", "verify", store)
    result = command("trajectories", "verify", store)
    named = set(re.findall(r"\w[\w-]*\.safetensors", f"{result.stdout}{last}"))  # type: ignore[attr-defined]
    assert named == {"traj-000000.safetensors", "traj-000002.safetensors", "extra.safetensors"}
    assert len(verify(store)) == 3


@pytest.fixture
def one_shard(toys: Path, tmp_path: Path, made: Callable[..., str], collect_options: list[object]) -> Path:
    """The only shard of a store of two trajectories."""
    made("collect", "--teacher", toys / "teacher", "--out", tmp_path, *collect_options, "--num", 2, "--num-steps", 1)
    return tmp_path / "traj-000000.safetensors"


def with_header_bytes_flipped(path: Path) -> Iterator[str]:
    """Change one byte of a shard's header after another; what was changed."""
    whole = path.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        yield f"byte {place}, {whole[place : place + 1]!r} after {whole[:place][-20:]!r}"


def test_verify_finds_every_flipped_byte_of_a_header(one_shard: Path) -> None:
    for change in with_header_bytes_flipped(one_shard):
        assert verify(one_shard.parent), f"{change} is not found"


def test_verify_finds_a_changed_header_before_the_store_has_checksums(one_shard: Path) -> None:
    write_record(one_shard.parent, load_manifest(one_shard.parent)[0], {})
    for change in with_header_bytes_flipped(one_shard):
        assert any(one_shard.name in problem for problem in verify(one_shard.parent)), f"{change} is not found"


def test_a_reader_refuses_a_changed_header_or_reads_what_was_written(one_shard: Path) -> None:
    whole = TrajectoryReader(one_shard.parent, state=X_T, num_steps=1).read(torch.arange(2))
    refusals = 0
    for change in with_header_bytes_flipped(one_shard):
        try:
            batch = TrajectoryReader(one_shard.parent, state=X_T, num_steps=1).read(torch.arange(2))
        except InputError:
            refusals += 1
        else:
            assert torch.equal(batch.states, whole.states), change
            assert torch.equal(batch.labels, whole.labels), change
    assert refusals > 100


def test_verify_is_content_with_a_whole_store(toys: Path, made: Callable[..., str]) -> None:
    assert verify(toys / "store") == []
    assert "20 trajectories in 3 shards, all whole" in made("trajectories", "verify", toys / "store")


def test_info_prints_the_manifest_and_the_size_as_json(toys: Path, made: Callable[..., str]) -> None:
    info = json.loads(made("trajectories", "info", toys / "store"))
    size = sum(path.stat().st_size for path in (toys / "store").glob("*.safetensors"))
    assert (info["num"], info["shards"], info["bytes"], info["complete"]) == (20, 3, size, True)
    assert info["states"] == ["x_0_hat", "x_t"]
    assert info["kept"] == list(range(13))
    assert info["teacher"]["path"] == "../teacher"
