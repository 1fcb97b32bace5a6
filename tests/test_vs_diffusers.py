"""The benchmark against diffusers runs: the pipeline's images are ours, and every contender is timed."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "vs_diffusers.py"


def test_the_pipeline_and_our_teacher_draw_the_same_and_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    path = tmp_path / "rows.json"
    words = ["--model", "DiT-S/8", "--steps", "2", "--rounds", "1", "--device", "cpu", "--json", str(path)]
    runpy.run_path(str(SCRIPT))["main"](words)
    names = [row["model"] for row in json.loads(path.read_text())["rows"]]
    assert names == ["DiTPipeline", "teacher2", "ard4-n6", "ard4-n6-fast", "step4", "step4-fast"]
    told = capsys.readouterr().out
    assert float(told.splitlines()[0].split(": ")[1]) < 1e-4
    assert "DiTPipeline / ard4-n6: " in told
