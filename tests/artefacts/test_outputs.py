"""What is written: into a place that can be written, over nothing but an earlier output of the same command."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ard.core.errors import InputError
from ard.core.files import write_atomically
from ard.core.marks import is_marked, npz_mark
from ard.core.outputs import Outputs
from ard.core.places import require_file, require_folder

Refused = Callable[..., str]
Made = Callable[..., str]

FLOPS = ["flops", "--model", "tiny/2", "--num-steps", 2, "--json"]
MARKED = {".json": Outputs.json, ".svg": Outputs.svg, ".png": Outputs.png}
KILLED = """
import os, signal, sys
from pathlib import Path
from ard.core.files import write_atomically

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"half")
"""
CONTENT = {".json": {"rows": []}, ".svg": "<svg></svg>", ".png": Image.new("L", (2, 2))}


class TestFilesThatCannotBeReplaced:
    def test_a_link_stays_one_and_what_it_leads_to_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "link.json").symlink_to("folder/target.json")
        (tmp_path / "folder").mkdir()
        for content in (b"first, where nothing is yet", b"second"):
            write_atomically(tmp_path / "link.json", content)
            assert (tmp_path / "link.json").is_symlink()
            assert (tmp_path / "folder/target.json").read_bytes() == content
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["target.json"]

    def test_a_pipe_is_written_to_and_stays_one(self, tmp_path: Path) -> None:
        pipe, read = tmp_path / "pipe", []
        os.mkfifo(pipe)
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        write_atomically(pipe, b"content")
        reader.join(5)
        assert read == [b"content"]
        assert pipe.is_fifo()

    def test_a_device_and_an_open_file_are_written_to(self, tmp_path: Path) -> None:
        write_atomically(Path("/dev/null"), b"content")
        assert Path("/dev/null").is_char_device()
        with (tmp_path / "open").open("w+b") as file:
            write_atomically(Path(f"/dev/fd/{file.fileno()}"), b"content")
            assert file.read() == b"content"

    def test_a_file_keeps_its_mode(self, tmp_path: Path) -> None:
        (tmp_path / "private").touch(0o600)
        write_atomically(tmp_path / "private", b"content")
        assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600

    def test_a_name_may_be_as_long_as_the_file_system_takes(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / ("x" * 255), b"content")
        assert (tmp_path / ("x" * 255)).read_bytes() == b"content"


class TestHome:
    """No shell expands what stands behind an equals sign."""

    def test_a_path_that_begins_with_a_tilde_lies_at_home(
        self, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        made("analyze", "masks", "--out=~/figures")
        assert (tmp_path / "figures/masks.svg").is_file()
        plan = json.loads(made("plan", "--preset", "ard", "--json", "--out=~/runs"))
        assert f"--out {tmp_path}/runs/ard" in plan["commands"][-1]

    def test_nobodys_home_is_refused(self, refused: Refused) -> None:
        assert "no user 'nobody-at-all' here" in refused("analyze", "masks", "--out=~nobody-at-all/x")


class TestPlacesThatCannotBeWritten:
    """Each is refused before the work, and nothing is left."""

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("folder", "is a folder; name a file in it"),
            ("file/x.json", "file is a file, not a folder"),
            ("file/deep/x.json", "file is a file, not a folder"),
            ("/proc/nothing/x.json", "cannot be written in /proc"),
            ("x" * 300 + ".json", "File name too long"),
            ("loop/x.json", "symbolic links"),
        ],
    )
    def test_a_file(self, name: str, told: str, tmp_path: Path, refused: Refused) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(InputError, match=told):
            require_file(tmp_path / name)
        if name != "folder":  # Which the option itself refuses.
            assert told in refused(*FLOPS, tmp_path / name)

    @pytest.mark.parametrize(("name", "told"), [("file", "is a file; name a folder"), ("file/x", "not a folder")])
    def test_a_folder(self, name: str, told: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=told):
            require_folder(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_what_will_not_fit_on_the_disk(self, tmp_path: Path) -> None:
        for check in (require_file, require_folder):
            check(tmp_path / "new", size=1000)
            with pytest.raises(InputError, match=r"will need about 1e\+09 GB, and its disk has"):
                check(tmp_path / "new", size=10**18)

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is write-protected for the superuser")
    def test_what_is_write_protected(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir(0o500)
        (tmp_path / "file").touch(0o400)
        for path in ("folder/x", "file"):
            with pytest.raises(InputError, match="cannot be written"):
                require_file(tmp_path / path)


class TestOwnOutputs:
    @pytest.mark.parametrize("suffix", MARKED)
    def test_are_known_by_their_marks_whatever_the_case_of_the_name(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"x{suffix.upper()}"
        MARKED[suffix](Outputs(command="flops"), path, CONTENT[suffix])
        Outputs(command="flops").check(path)
        with pytest.raises(InputError, match="no earlier output of ard plan; choose another name, or add --overwrite"):
            Outputs(command="plan").check(path)
        Outputs(command="plan", overwrite=True).check(path)

    def test_an_archive_is_known_too(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", arr_0=np.zeros(3), ard=npz_mark("sample", {"more": 3}))
        assert is_marked(tmp_path / "x.npz", "sample")
        assert not is_marked(tmp_path / "x.npz", "evaluate")

    def test_rows_are_known_by_what_lies_beside_them(self, tmp_path: Path) -> None:
        rows = tmp_path / "rows.csv"
        rows.write_text("a\n1\n")
        with pytest.raises(InputError, match=r"rows\.csv is there already"):
            Outputs(command="flops").check(rows)
        Outputs(command="flops").json(tmp_path / "rows.json", {})
        Outputs(command="flops").check(rows)

    @pytest.mark.parametrize("suffix", [".json", ".npz", ".png", ".svg", ".csv", ".txt", ""])
    @pytest.mark.parametrize("content", [b"theirs", b"{", b"\x89PNG\r\n", b"PK\x03\x04", b"\xff" * 100])
    def test_whatever_else_lies_there_is_none(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / f"x{suffix}").write_bytes(content)
        assert not is_marked(tmp_path / f"x{suffix}", "flops")

    def test_nothing_and_an_empty_file_may_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "empty.json").touch()
        Outputs(command="flops").check(tmp_path / "empty.json", tmp_path / "new.json", None)

    @pytest.mark.parametrize("name", ["a.json", "[a]*.json", "ä" * 90 + ".json"])
    def test_what_a_killed_run_left_of_it_goes_with_the_next_and_of_others_stays(
        self, name: str, tmp_path: Path, leftover: Callable[[Path, int], Path], dead: int
    ) -> None:
        other = leftover(tmp_path, dead)
        path, beside = tmp_path / name, set(tmp_path.iterdir())
        subprocess.run([sys.executable, "-c", KILLED, path], check=False)
        assert len({*tmp_path.iterdir()} - beside) == 1
        Outputs(command="flops").json(path, {})
        assert {*tmp_path.iterdir()} == {other, path}

    def test_one_name_for_two_outputs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="two outputs"):
            Outputs(command="flops").check(tmp_path / "x.json", tmp_path / "x.json")


class TestCommands:
    """Every command that writes files for people asks before it replaces what is not its own."""

    def test_a_command_replaces_its_own_output_and_no_other(self, tmp_path: Path, made: Made, refused: Refused) -> None:
        theirs, own = tmp_path / "theirs.json", tmp_path / "own.json"
        theirs.write_text('{"rows": "precious"}')
        made(*FLOPS, own)
        made(*FLOPS, own)
        assert "theirs.json is there already" in refused(*FLOPS, theirs)
        assert "own.json is there already" in refused("plan", "--preset", "ard", "--json", own)
        made(*FLOPS, theirs, "--overwrite")
        assert json.loads(theirs.read_text())["written_by"] == "ard flops"

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (["analyze", "masks", "--out", "OUT"], "masks.svg"),
            (["analyze", "solvers", "--teacher", "TOYS/teacher", "--solvers", "euler", "--out", "OUT"], "solvers.csv"),
            (["analyze", "attention", "--student", "TOYS/student", "--out", "OUT"], "attention.json"),
            (["analyze", "errors", "--student", "TOYS/student", "--out", "OUT"], "errors.svg"),
            (["analyze", "pareto", "--student", "TOYS/student", "--out", "OUT"], "pareto-flops.svg"),
            (["analyze", "convergence", "--student", "TOYS/kept", "--out", "OUT"], "convergence.csv"),
            (["bench", "latency", "--model", "tiny/2", "--json", "OUT/x.json"], "x.json"),
            (["bench", "train", "--model", "tiny/2", "--json", "OUT/x.json"], "x.json"),
            (["bench", "collect", "--model", "tiny/2", "--json", "OUT/x.json"], "x.json"),
            (["bench", "ceilings", "--model", "tiny/2", "--json", "OUT/x.json"], "x.json"),
            (["bench", "cpu", "--json", "OUT/x.json"], "x.json"),
            (["bench", "data", "--json", "OUT/x.json"], "x.json"),
            (["plan", "--preset", "ard", "--json", "OUT/x.json"], "x.json"),
            (["evaluate", "--student", "TOYS/student", "--json", "OUT/x.json"], "x.json"),
        ],
    )
    def test_what_is_theirs_stays(
        self, words: list[str], name: str, toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        (tmp_path / name).write_text("theirs")
        said = refused(*(word.replace("OUT", str(tmp_path)).replace("TOYS", str(toys)) for word in words))
        assert f"{name} is there already and is no earlier output of ard {' '.join(words[:1])}" in said


FOLDERS = {
    "teach": ["--model", "tiny/4", "--iterations", 2],
    "teacher import": ["TOYS/dit.safetensors", "--format", "dit", "--num-heads", 2],
    "collect": ["--teacher", "TOYS/teacher", "--num", 4, "--num-teacher-steps", 4],
    "distill": ["--trajectories", "TOYS/store", "--num-steps", 2, "--iterations", 2],
    "sweep": ["--trajectories", "TOYS/store", "--num-steps", 2, "--iterations", 2],
    "export": ["--student", "TOYS/student"],
    "demo": [],
    "reproduce": ["--scale", "tiny"],
    "sample": ["--student", "TOYS/student"],
}


class TestFolders:
    """Every command that fills a folder looks at it before its work."""

    def words(self, verb: str, toys: Path) -> list[str]:
        return [*verb.split(), *(str(word).replace("TOYS", str(toys)) for word in FOLDERS[verb])]

    @pytest.mark.parametrize("verb", FOLDERS)
    @pytest.mark.parametrize(
        ("name", "told"), [("file/x", "file is a file, not a folder"), ("/proc/x", "written in /proc")]
    )
    def test_one_that_cannot_be_written(
        self, verb: str, name: str, told: str, toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        (tmp_path / "file").touch()
        assert told in refused(*self.words(verb, toys), "--out", tmp_path / name)

    @pytest.mark.parametrize(
        ("verb", "options"),
        [
            (
                "collect",
                ["--num", 2 * 10**9, "--keep", "all", "--states", "x_t", "x_0_hat", "--num-teacher-steps", 100],
            ),
            ("teach", ["--iterations", 10**8, "--checkpoint-every", 1, "--keep-checkpoints", 0]),
            ("distill", ["--iterations", 10**8, "--checkpoint-every", 1, "--keep-checkpoints", 0]),
        ],
    )
    def test_one_whose_content_will_not_fit_on_the_disk(
        self, verb: str, options: list[object], toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        said = refused(*self.words(verb, toys), *options, "--out", tmp_path / "new")
        assert "will need about" in said
        assert "GB left" in said

    @pytest.mark.parametrize(
        ("verb", "name"),
        [("sweep", "results.json"), ("sweep", "table.md"), ("demo", "report.html"), ("reproduce", "report.md")],
    )
    def test_one_with_a_file_of_somebody_else_in_the_place_of_theirs(
        self, verb: str, name: str, toys: Path, tmp_path: Path, refused: Refused
    ) -> None:
        (tmp_path / name).write_text("theirs")
        said = refused(*self.words(verb, toys), "--out", tmp_path)
        assert f"{name} is there already, and no stages.json" in said
