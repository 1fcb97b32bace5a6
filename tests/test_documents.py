"""The README's pipeline and every example in a help text run as they stand, at a smaller size."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import ard
from ard import cli
from ard.student.folder import StudentCard, save_student
from ard.student.student import Student

ROOT = Path(__file__).parents[1]
SMALLER = {
    "teach": ["--iterations", "6", "--model", "tiny/4"],
    "collect": ["--num", "130", "--workers", "1"],
    "distill": ["--iterations", "3"],
    "evaluate": ["--num", "100"],
}


def readme_commands() -> list[list[str]]:
    """The `ard` lines of the README's pipeline block, the demonstration apart."""
    block = next(
        b for b in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "ard teach" in b
    )
    return [shlex.split(line)[1:] for line in block.splitlines() if line and not line.startswith("ard demo")]


def examples(verb: str) -> list[list[str]]:
    """The examples in a command's help."""
    module, name, _ = cli.COMMANDS[verb]
    text = getattr(__import__(module, fromlist=[name]), name).__doc__
    return [shlex.split(line)[1:] for line in re.findall(r"^\s+(ard .*)$", text, re.MULTILINE)]


def test_the_readmes_pipeline_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert [command[0] for command in commands] == ["teach", "collect", "distill", "distill", "sample", "evaluate"]
    for command in commands:
        assert cli.run([*command, *SMALLER.get(command[0], [])]) == 0, capsys.readouterr().err
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    models = [row["model"] for row in json.loads((tmp_path / "runs/metrics.json").read_text())["rows"]]
    assert models == ["teacher", "untrained", "ard", "step"]


def test_the_guides_example_in_python_runs_on_a_student_in_a_folder(
    make_carded_student: Callable[..., tuple[Student, StudentCard]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, card = make_carded_student()
    save_student(tmp_path / "runs/ard", card, student.state_dict())
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "docs/guide.md").read_text().split("\n## From Python\n")[1]
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], {})  # noqa: S102 our own text
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_the_guide_tells_every_name_that_the_package_offers() -> None:
    section = (ROOT / "docs/guide.md").read_text().split("\n## From Python\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("| "))
    assert set(re.findall(r"`(\w+)(?:\(|`)", table)) >= set(ard.__all__) - {"__version__"}


@pytest.mark.parametrize("verb", cli.COMMANDS)
def test_every_help_text_has_examples_that_parse(verb: str) -> None:
    commands = examples(verb)
    assert commands
    for command in commands:
        words = verb.split()
        assert command[: len(words)] == words
        cli.parse(verb, command[len(words) :])


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in cli.COMMANDS)


def test_the_guides_contents_are_its_sections_and_every_link_within_it_leads_to_one() -> None:
    text = (ROOT / "docs" / "guide.md").read_text()
    sections = re.findall(r"^## (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9 -]", "", section.lower()).replace(" ", "-") for section in sections]
    contents = text.split("## ", 1)[0]
    assert re.findall(r"^- \[(.*)\]\(#(.*)\)$", contents, re.MULTILINE) == list(zip(sections, anchors, strict=True))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(anchors)


def test_everything_that_an_extra_needs_is_pinned() -> None:
    def names(lines: list[str]) -> set[str]:
        return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines if line[0] != "#"}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = names(
        [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    )
    pinned = names((ROOT / "requirements.txt").read_text().splitlines())
    elsewhere = {"ard", "pre-commit", "torch-fidelity"}  # Itself; of no test; needs torchvision.
    assert wanted - pinned == elsewhere
