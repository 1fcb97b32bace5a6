"""Every Python block of every document runs as it stands; add-your-teacher.md has a test of its own."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ard.images import DATASETS, load_data, load_digits_images

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
ELSEWHERE = {"add-your-teacher.md"}  # tests/test_backbones.py


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)


def test_the_blocks_that_run_are_those_of_all_documents() -> None:
    assert len(DOCUMENTS) > 5
    with_python = {document.name for document in DOCUMENTS if python_blocks(document)}
    assert with_python == {"guide.md"} | ELSEWHERE


def test_the_guides_python_runs_from_top_to_bottom(
    toys: Path, tmp_path: Path, made: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toys / "student", tmp_path / "runs/ard")
    made("export", "--student", toys / "student", "--samples", 0, "--out", tmp_path / "digits-ard", "--device", "cpu")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"load_digits_images": load_digits_images, "__name__": "guide"}
    blocks = python_blocks(ROOT / "docs/guide.md")
    assert len(blocks) == 4
    drawn = []
    for block in blocks:
        exec(compile(block, "docs/guide.md", "exec"), names)  # noqa: S102 our own text
        drawn.append(names.get("images"))
    assert [image.size for image in drawn[0]] == [(8, 8)] * 3
    with Image.open("digits.png") as sheet:
        assert sheet.size[0] > 8
    monkeypatch.setitem(DATASETS, "bars", names["DATASETS"]["bars"])
    assert load_data("bars").num_classes == 2
