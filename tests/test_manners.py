"""How the command line talks: help at once, one line that fits, what was meant, and streams that end or are poor."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ard import cli
from ard.cli.help_texts import FOLDER, help_file, kept_help
from ard.cli.messages import LONGEST_LINE, LONGEST_WORD, explained
from ard.cli.parsing import help_of, options_in
from ard.core.errors import InputError

ARD = [sys.executable, "-m", "ard"]


def complaint(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which `ard` refuses these arguments."""
    assert cli.run(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("verb", cli.COMMANDS)
def test_the_help_text_that_is_kept_is_current(verb: str) -> None:
    assert kept_help(verb) == help_of(verb), "run make help-texts"


def test_there_is_one_help_text_for_each_command() -> None:
    assert sorted(FOLDER.iterdir()) == sorted(map(help_file, cli.COMMANDS))


def test_no_help_imports_what_takes_long() -> None:
    script = f"""
import sys
from ard import cli
for words in {[[*verb.split(), "--help"] for verb in cli.COMMANDS] + [["--help"], [], ["bench", "-h"], ["--version"]]}:
    assert cli.run(words) == 0
print({{"torch", "tyro", "numpy", "PIL"}} & set(sys.modules), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == "set()\n"
    assert all(kept_help(verb) in result.stdout for verb in cli.COMMANDS)


def test_help_is_there_within_half_a_second() -> None:
    spent = []
    for _ in range(3):  # The processor's time, because others may be at work; the best of three.
        before = os.times()
        subprocess.run([*ARD, "teach", "--help"], capture_output=True, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("destill --out x", "unknown command 'destill'; did you mean distill? ard --help shows all"),
        ("colect", "did you mean collect?"),
        ("analyse errors", "unknown command 'analyse'; did you mean analyze?"),
        ("bench_cpu", "did you mean bench cpu?"),
        ("qqq", "unknown command 'qqq'; ard --help shows all"),
        ("analyze eror", "not 'eror'; did you mean errors? ard analyze --help shows all"),
        ("analyze", "not nothing; ard analyze --help shows all"),
        ("collect --teacher a --out b --nmu 3", "collect has no option --nmu; did you mean --num?"),
        ("collect --teacher a --out b --batch_sise=3", "no option --batch_sise; did you mean --batch-size?"),
        ("distill --out b --penlaty r1", "did you mean --penalty?"),
        ("sample --grdi --out x", "sample has no option --grdi; did you mean --grid?"),
        ("teach -out x", "teach has no option -out; did you mean --out?"),
        ("collect --teacher a --out b stray", "'stray' belongs to no option of collect"),
        ("collect --seed 3", "collect needs --teacher and --out; ard collect --help explains all"),
        ("trajectories info", "trajectories needs PATH"),
        ("collect --teacher a --out b --num", "Missing value for argument '--num'"),
        ("collect --teacher a --out b --keep al", "invalid choice 'al' for argument '--keep'"),
        ("teach --out x --learning-rate fast", "--learning-rate: could not convert string to float: 'fast'"),
    ],
)
def test_what_was_probably_meant_is_said_and_nothing_twice(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(words.split(), capsys)
    assert told in line
    assert len(line) < 250
    assert "nrecognized" not in line
    pieces = line.split()
    assert not any(pieces[i : i + 2] == pieces[i + 2 : i + 4] for i in range(len(pieces))), line


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--out", "x", "--preset", "p" * 5000],
        ["distill", "--out", "x" * 5000, "--trajectories", "y" * 5000],
        ["sample", "--student", "s" * 5000, "--out", "x.png"],
        ["teach", "--out", "o", "--data", "a b " * 2000],
        ["q" * 5000],
        ["collect", "--" + "z" * 5000],
    ],
)
def test_a_long_argument_is_not_echoed_whole(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(words, capsys)
    assert len(line) <= LONGEST_LINE + len("ard: ")
    assert all(len(word) <= LONGEST_WORD for word in line.split())
    assert "…" in line


@pytest.mark.parametrize(
    ("number", "told", "untold"),
    [
        (errno.ENOSPC, "nothing is lost, run the same command again to go on", "place"),
        (errno.EACCES, "choose another place, or allow it there", "again"),
        (errno.EROFS, "choose another place, or allow it there", "again"),
        (errno.EMFILE, "ulimit -n", "again"),
        (errno.ENOTDIR, "Not a directory: some/file", "again"),
    ],
)
def test_running_again_is_proposed_only_where_it_helps(number: int, told: str, untold: str) -> None:
    line = explained(OSError(number, os.strerror(number), "some/file"))
    assert line.startswith(f"{os.strerror(number)}: some/file")
    assert told in line
    assert untold not in line


def test_the_options_of_a_help_text_are_found() -> None:
    found = options_in(kept_help("collect"))
    assert {"--teacher", "--num-steps", "--dry-run", "--no-dry-run", "-h", "--help"} <= found
    assert not any(option.startswith("--preset.") for option in found)


@pytest.mark.parametrize(
    ("words", "option", "needed"),
    [
        ("distill --trajectories s --out o --penalty r1", "--penalty", "--adversarial"),
        ("distill --trajectories s --out o --penalty=r1", "--penalty", "--adversarial"),
        ("distill --trajectories s --out o --discriminator heads", "--discriminator", "--adversarial"),
        ("distill --trajectories s --out o --no-adversarial --adversarial-weight 10", "--adversarial-weight", "--adve"),
        ("distill --trajectories s --out o --replay_updates 8", "--replay-updates", "--online"),
        ("distill --trajectories s --out o --cfg-scale 1.5", "--cfg-scale", "--online"),
        ("sample --student s --out o.png --teacher-rows full", "--teacher-rows", "--grid"),
        ("evaluate --student s --num-kept 10000", "--num-kept", "--student"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_also_at_its_default(words: str, option: str, needed: str) -> None:
    verb, *arguments = words.split()
    with pytest.raises(InputError, match=f"{option} has no meaning with.*{needed}"):
        cli.parse(verb, arguments)


@pytest.mark.parametrize(
    "words",
    [
        "distill --trajectories s --out o --adversarial --penalty r1",
        "distill --trajectories s --out o --preset ard-gan --resume-from x --penalty r1",
        "distill --teacher t --online --out o --replay-updates 8",
        "sample --student s --out o.png --grid --teacher-rows full",
    ],
)
def test_the_same_option_is_taken_where_it_has_a_meaning(words: str) -> None:
    verb, *arguments = words.split()
    cli.parse(verb, arguments)


@pytest.mark.parametrize("words", [["distill", "--help"], ["flops", "--model", "tiny/2", "--latent-size", "8"]])
def test_a_pipe_that_closes_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run([*ARD, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_work_is_done_although_nobody_reads_about_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        options = ["--out", str(tmp_path / "t"), "--model", "tiny/4", "--iterations", "2", "--device", "cpu"]
        result = subprocess.run([*ARD, "teach", *options], stdout=writer, stderr=writer, check=False)
    finally:
        os.close(writer)
    assert result.returncode == 0
    assert (tmp_path / "t/model.safetensors").is_file()


def test_a_full_disk_behind_a_redirection_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        result = subprocess.run([*ARD, "--help"], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("ard: No space left on device")
    assert len(result.stderr.splitlines()) == 1


def test_streams_that_are_closed_from_the_start_are_no_error() -> None:
    words = ["sh", "-c", f"exec {sys.executable} -m ard --help >&- 2>&-"]
    assert subprocess.run(words, check=False).returncode == 0


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_without_our_letters_gets_a_table_and_a_path_that_it_can_show(
    tmp_path: Path, locale: dict[str, str]
) -> None:
    poor = {**os.environ, "PYTHONUTF8": "0", **locale}
    words = [*ARD, "flops", "--model", "tiny/2", "--latent-size", "8", "--json", os.fsencode(tmp_path / "Größe±.json")]
    result = subprocess.run(words, env=poor, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.isascii()
    assert (tmp_path / "Größe±.json").is_file()
    words = [*ARD, "sample", "--student", os.fsencode(tmp_path / "Größe"), "--out", "x.png"]
    result = subprocess.run(words, env=poor, capture_output=True, check=False)
    assert result.returncode == 2
    assert b"no student" in result.stderr
    assert len(result.stderr.splitlines()) == 1
