"""Figure 3b drawn: the text and the picture show what the history's own functions say."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from ard.analysis.masks import KINDS, MEANINGS, mask_label, masks_figure, masks_text, step_kinds
from ard.cli import run
from ard.student.history import HistoryMask

FIGURE_3B = """
M1 diagonal   M2 window     M3 anchor     M4 causal
    0 1 2 3       0 1 2 3       0 1 2 3       0 1 2 3
 0 ██······    0 ██······    0 ██······    0 ██······
 1 ··██····    1 ▒▒██····    1 ▒▒██····    1 ▒▒██····
 2 ····██··    2 ··▒▒██··    2 ▒▒··██··    2 ▒▒▒▒██··
 3 ······██    3 ····▒▒██    3 ▒▒····██    3 ▒▒▒▒▒▒██
"""  # Copied from the figure by hand, in generation order.


def elements(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter())  # noqa: S314  # our own text


def fills(svg: str) -> list[str]:
    """The colours of all filled shapes."""
    styles = [element.get("style", "") for element in elements(svg)]
    return [style.split("fill: ")[1].split(";")[0].upper() for style in styles if "fill: " in style]


def words(svg: str) -> list[str]:
    return [element.text for element in elements(svg) if element.tag.endswith("text") and element.text]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("mask", HistoryMask)
def test_a_block_is_the_step_itself_or_an_earlier_step_that_it_reads(mask: HistoryMask, num_steps: int) -> None:
    for step, row in enumerate(step_kinds(mask, num_steps)):
        wanted = [2 if key == step else int(key in mask.readable(step)) for key in range(num_steps)]
        assert row == wanted


def test_the_text_is_figure_3b() -> None:
    assert FIGURE_3B.strip() in masks_text(4)


@pytest.mark.parametrize("mask", HistoryMask)
def test_the_text_says_what_each_mask_means_and_in_which_order_steps_come(mask: HistoryMask) -> None:
    text = masks_text(3)
    assert any(line.startswith(mask_label(mask)) and line.endswith(MEANINGS[mask]) for line in text.splitlines())
    assert "Generation order: step 0 holds the noise" in text
    assert "its step s is step 3 - s here" in text


@pytest.mark.parametrize("num_steps", [1, 2, 9, 10, 11, 16])
def test_the_text_shows_every_mask_in_lines_that_fit_a_terminal(num_steps: int) -> None:
    lines = masks_text(num_steps).splitlines()
    assert max(map(len, lines)) <= 100
    drawn = [line for line in lines if "█" in line and "the step itself" not in line]
    assert sum(line.count("██") for line in drawn) == 4 * num_steps
    earlier = sum(len(mask.readable(step)) for mask in HistoryMask for step in range(num_steps))
    assert sum(line.count("▒▒") for line in drawn) == earlier


@pytest.mark.parametrize("num_steps", [1, 4, 12])
def test_the_picture_has_a_block_of_the_right_colour_for_every_pair_of_steps(num_steps: int) -> None:
    found = fills(masks_figure(num_steps))
    blocks = [kind for mask in HistoryMask for row in step_kinds(mask, num_steps) for kind in row]
    for kind, (_, colour) in enumerate(KINDS):
        assert found.count(colour.upper()) == blocks.count(kind) + 1, "the blocks, and one swatch in the legend"


def test_the_picture_names_masks_axes_order_and_colours() -> None:
    found = words(masks_figure(4))
    labels = [mask_label(mask) for mask in HistoryMask]
    assert [word for word in found if word in labels] == ["M1 diagonal", "M2 window", "M3 anchor", "M4 causal"]
    assert found.count("reads (key step)") == 4
    assert found.count("step (query)") == 1
    assert any("generation order, step 0 holds the noise" in word for word in found)
    assert {meaning for meaning, _ in KINDS} <= set(found)


def test_the_picture_is_the_same_text_each_time() -> None:
    assert masks_figure(3) == masks_figure(3)


def test_the_command_prints_the_text_and_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    assert run(["analyze", "masks", "--num-steps", "4", "--out", str(out)]) == 0
    assert masks_text(4) in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == ["masks.svg"]
    assert (out / "masks.svg").read_text().startswith(masks_figure(4).rstrip())


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", "masks", "--out", str(tmp_path / "figures"), "--dry-run"]) == 0
    assert '"num_steps": 4' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_steps", [0, 17])
def test_a_number_of_steps_that_cannot_be_drawn_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_steps: int
) -> None:
    assert run(["analyze", "masks", "--num-steps", str(num_steps), "--out", str(tmp_path / "figures")]) == 2
    assert f"num_steps is {num_steps}; allowed are 1 to 16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_text_needs_no_matplotlib_and_the_picture_asks_for_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["analyze", "masks"]) == 0
    assert masks_text(4) in capsys.readouterr().out
    assert run(["analyze", "masks", "--out", str(tmp_path / "figures")]) == 2
    captured = capsys.readouterr()
    assert "this needs the package matplotlib" in captured.err
    assert not captured.out
