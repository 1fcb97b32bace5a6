"""The fuzzers find no traceback, no hang and no wrong exit status; and they would find them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import command_lines
import pytest
from sandbox import Outcome, complaint, own_folder, run_in

HERE = Path(__file__).parent


def fuzzed(*options: object) -> str:
    """What the fuzzers say, who must find no fault."""
    words = [sys.executable, "-W", "ignore", str(HERE), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_few_cases_of_each_kind() -> None:
    said = fuzzed("--cases", 8)
    assert said.count(": 8 cases in ") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("json", 200), ("binaries", 200), ("lines", 200), ("kills", 100)])
def test_hundreds_of_cases(kind: str, count: int) -> None:
    assert f"{kind}: {count} cases in " in fuzzed("--kinds", kind, "--cases", count)


def ended(status: int, err: str = "", out: str = "") -> Outcome:
    return Outcome(status=status, out=out, err=err, seconds=1, operations=0)


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (ended(0, out="done"), None),
        (ended(2, "ard: x is no number\n"), None),
        (ended(2, "\rread:  50%|###  | 1/2\nard: x is no number\n"), None),
        (ended(2, "ard: x is\nno number\n"), "not one short line"),
        (ended(2, "ard: " + "x" * 5000), "not one short line"),
        (ended(2, ""), "not one short line"),
        (ended(1, "Traceback (most recent call last):\nKeyError: 'x'\n"), "traceback: KeyError: 'x'"),
        (ended(0, "Traceback (most recent call last):\n"), "traceback"),
        (ended(3, "ard: x\n"), "exit status: 3"),
        (ended(-signal.SIGXCPU), "hangs"),
        (ended(-signal.SIGALRM), "hangs"),
        (ended(-signal.SIGSEGV), "ended by a signal: 11"),
    ],
)
def test_what_counts_as_a_fault(outcome: Outcome, fault: str | None) -> None:
    found = complaint(outcome)
    assert (found is None) if fault is None else (found or "").startswith(fault)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_command_runs_in_its_folder_and_may_change_no_other() -> None:
    with own_folder() as root:
        folder = root / "case"
        folder.mkdir(mode=0o777)
        outside = root / "outside"
        outcome = run_in(folder, ["--version"], prepare=outside.touch)
        if os.geteuid() == 0:
            assert "PermissionError" in (complaint(outcome) or "")
        inside = run_in(folder, ["flops", "--num-steps", "x"])
        assert complaint(inside) is None
        assert inside.status == 2


def test_no_command_line_names_a_place_outside_its_folder() -> None:
    words = {word for _, line in zip(range(300), command_lines.lines(0), strict=False) for word in line.words}
    assert len(words) > 100
    starts = {start for word in words for start in (word, word.partition("=")[2])}
    assert not [start for start in starts if start.startswith(("/", "~")) or "../" in start or start == ".."]
