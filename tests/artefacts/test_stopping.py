"""SIGINT, SIGTERM and SIGHUP end work at its next pause, where it is kept; the same command goes on from there."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ard.core import stopping
from ard.core.stopping import DOUBLE, Stopped, stopping_at_once
from ard.teacher.teacher import load_teacher
from ard.text.encoded import PER_FILE, TextManifest, encode_prompts
from ard.training.log import read_log
from ard.training.loop import TrainConfig, train
from ard.training.state import checkpoints
from ard.trajectories.collect import collect
from ard.trajectories.manifest import load_manifest

Command = Callable[..., CompletedProcess[str]]
Contents = Callable[[Path], dict[str, bytes]]
Made = Callable[..., str]

NAMES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    """A signal that nobody expects fails the test instead of ending the tests."""

    def unexpected(number: int, _: object) -> None:
        raise AssertionError(f"{signal.Signals(number).name} came to nobody")

    before = {number: signal.signal(number, unexpected) for number in NAMES}
    yield
    after = {number: signal.getsignal(number) for number in NAMES}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == dict.fromkeys(NAMES, unexpected)


def lines_of(text: str) -> list[str]:
    """What is printed besides progress bars."""
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


@pytest.fixture
def send_when() -> Iterator[Callable[[Callable[[], object], int], None]]:
    """send_when(condition, number): send this process a signal as soon as the condition holds."""
    threads: list[threading.Thread] = []

    def send(condition: Callable[[], object], number: int) -> None:
        def watch() -> None:
            until = time.monotonic() + 60
            while not condition() and time.monotonic() < until:
                time.sleep(0.002)
            os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=watch))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join()


class Toy:
    """A training of a few numbers, in which update `at` is met by a signal."""

    def __init__(self, folder: Path, *, at: int = -1, number: int = signal.SIGTERM) -> None:
        self.folder, self.at, self.number = folder, at, number
        self.module = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.fill_(0.5)

    def loss_at(self, step: int) -> Tensor:
        if step == self.at:
            signal.raise_signal(self.number)
        generator = torch.Generator().manual_seed(step)
        return self.module(torch.randn(4, 3, generator=generator)).square().mean()

    def train(self) -> dict[str, Tensor]:
        config = TrainConfig(iterations=9, checkpoint_every=4, batch_size=4, log_every=2)
        return train(self.module, self.loss_at, config, self.folder, run={}, description="toy").averaged()


@pytest.mark.parametrize("number", NAMES)
def test_training_keeps_the_update_in_which_a_signal_comes_and_goes_on_from_there(tmp_path: Path, number: int) -> None:
    name = signal.Signals(number).name
    with pytest.raises(Stopped, match=rf"^stopped by {name}: update 6 of 9 is kept") as stopped:
        Toy(tmp_path / "toy", at=5, number=number).train()
    assert stopped.value.status == NAMES[number]
    assert [path.stem for path in checkpoints(tmp_path / "toy/checkpoints")] == ["step-0000004", "step-0000006"]
    found = Toy(tmp_path / "toy").train()
    wanted = Toy(tmp_path / "whole").train()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [line["step"] for line in read_log(tmp_path / "toy")] == [2, 4, 6, 8, 9]


def test_a_signal_in_the_last_update_ends_nothing(tmp_path: Path) -> None:
    found = Toy(tmp_path / "toy", at=8).train()
    assert torch.equal(found["weight"], Toy(tmp_path / "whole").train()["weight"])


def test_a_keyboard_interrupt_is_what_other_code_sees(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path, at=0, number=signal.SIGINT).train()
    assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["step-0000001"]


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As nohup wants it, and a shell that starts something in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Toy(tmp_path, at=3, number=signal.SIGHUP).train()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_in_another_thread_has_no_signals(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(Toy(tmp_path).train()))
    thread.start()
    thread.join()
    assert len(found) == 1


def test_the_second_signal_ends_the_work_at_once_but_not_its_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with stopping.stopping(lambda: told.append("")) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGINT
        monkeypatch.setattr(stop, "since", stop.since - DOUBLE)
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"):
            signal.raise_signal(signal.SIGTERM)
    assert len(told) == 3


def test_what_has_no_pauses_ends_at_once() -> None:
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"), stopping_at_once():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_stopped_command_says_one_line_and_its_status_and_ends_with_the_same_bytes(
    toys: Path,
    tmp_path: Path,
    command: Command,
    made: Made,
    send_when: Callable[..., None],
    distill_options: list[object],
) -> None:
    options = ["--trajectories", toys / "store", *distill_options, "--iterations", 80, "--log-every", 1, "--out"]
    log = tmp_path / "student/log.jsonl"
    send_when(lambda: log.exists() and log.stat().st_size, signal.SIGTERM)
    stopped = command("distill", *options, tmp_path / "student")
    assert stopped.returncode == 143
    (line,) = lines_of(stopped.stderr)
    (kept,) = [int(path.stem[5:]) for path in checkpoints(tmp_path / "student/checkpoints")]
    told = f"ard: stopped by SIGTERM: update {kept} of 80 is kept"
    assert line == f"{told}; the same command goes on from there"
    made("distill", *options, tmp_path / "student")
    made("distill", *options, tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("student", "whole")]
    assert weights[0] == weights[1]


class Counted:
    """A progress that is met by a signal when so many trajectories are there."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.told = at, [0]

    def __call__(self, count: int) -> None:
        self.told.append(self.told[-1] + count)
        if self.told[-1] == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def collect_again(toys: Path, tmp_path: Path) -> Callable[..., list[int]]:
    """Collect the toys' store again in tmp_path/store, telling a progress; what it was told, added up."""
    manifest, _ = load_manifest(toys / "grid_store")
    teacher = dataclasses.replace(manifest.teacher, path=os.path.relpath(toys / "teacher", tmp_path / "store"))
    manifest = dataclasses.replace(manifest, teacher=teacher)
    cpu = torch.device("cpu")

    def run(progress: Counted, *, workers: int = 1) -> list[int]:
        network = load_teacher(toys / "teacher", cpu)
        collect(tmp_path / "store", manifest, network, device=cpu, workers=workers, progress=progress)
        return progress.told

    return run


def test_collecting_tells_every_batch_and_stops_before_the_next(
    toys: Path, tmp_path: Path, collect_again: Callable[..., list[int]], contents: Contents
) -> None:
    progress = Counted(at=12)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM: the shards that are there are kept"):
        collect_again(progress)
    assert progress.told == [0, 0, 4, 8, 12]
    assert [path.name for path in (tmp_path / "store").glob("traj-*")] == ["traj-000000.safetensors"]
    assert collect_again(Counted()) == [0, 8, 12, 16, 20]
    for path, data in contents(toys / "grid_store").items():
        assert path == "manifest.json" or contents(tmp_path / "store")[path] == data


@pytest.mark.slow
def test_workers_tell_every_batch_too(collect_again: Callable[..., list[int]]) -> None:
    assert collect_again(Counted(), workers=2) == [0, 0, 4, 8, 12, 16, 20]


def test_threads_are_put_back(collect_again: Callable[..., list[int]]) -> None:
    torch.set_num_threads(2)
    try:
        collect_again(Counted())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_encoding_prompts_keeps_the_file_in_which_a_signal_comes(tmp_path: Path) -> None:
    prompts = tuple(f"prompt {number}" for number in range(2 * PER_FILE))
    manifest = TextManifest(encoder="0" * 16, source="none", width=4, max_tokens=3, prompts=prompts)
    asked: list[int] = []

    def encode(texts: Sequence[str]) -> list[Tensor]:
        if not asked:
            signal.raise_signal(signal.SIGTERM)
        asked.append(len(texts))
        return [torch.zeros(2, 4, dtype=torch.bfloat16) for _ in texts]

    with pytest.raises(Stopped, match="the shards that are there are kept"):
        encode_prompts(tmp_path / "text", manifest, encode, progress=lambda _: None)
    encode_prompts(tmp_path / "text", manifest, encode, progress=lambda _: None)
    assert asked == [PER_FILE, PER_FILE, 1], "each file once; the empty prompt is the first"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("moment", ["while the workers start", "after the first shard"])
def test_ctrl_c_in_a_terminal_prints_one_line_whatever_the_workers_do(
    toys: Path, tmp_path: Path, environment: dict[str, str], moment: str
) -> None:
    """A terminal sends the signal to all processes of the group."""
    size = ["--num", 400, "--shard-size", 2, "--num-teacher-steps", 60, "--num-steps", 4, "--workers", 2]
    words = ["collect", "--teacher", toys / "teacher", "--out", "store", *size, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ard", *map(str, words)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 90
    while time.monotonic() < until and not (
        len(children.read_text().split()) >= 3
        if moment == "while the workers start"
        else any((tmp_path / "store").glob("traj-*"))
    ):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert lines_of(errors) == [
        "ard: stopped by SIGINT: the shards that are there are kept; the same command goes on from there"
    ]


STAGES_SCRIPT = """
import sys
from pathlib import Path
from ard.studies import stages
from ard.core.stopping import Stopped, stopping_at_once

# Stands for `ard`: takes a second, unless it is told to end, which takes it a little while.
child = '''
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.2)
    Path(sys.argv[1]).write_text("ended well")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1]).write_text("started")
time.sleep(60)
'''
out = Path(sys.argv[1])
stages.start = lambda words, environment, running: running.run([sys.executable, "-c", child, words[-1]], {})
some = [stages.Stage(name, (), computes=False) for name in ("a", "b", "c")]
try:
    with stopping_at_once():
        stages.run_missing(out, some, device="cpu", jobs=2, title="stages")
except Stopped as stop:
    print(stop)
    sys.exit(stop.status)
"""


def test_a_signal_is_passed_on_to_the_stages_once_and_no_more_are_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES_SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not all((tmp_path / name).exists() for name in "ab"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert printed.splitlines()[-1].startswith("stopped by SIGINT: what its stages have made is kept")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "ended well", "b": "ended well"}
