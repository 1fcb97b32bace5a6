"""Training in little memory, by the commands: what changes no bit, and what is published all the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ard.models.layers import Block


@pytest.fixture
def short(toys: Path) -> list[object]:
    """A short distillation of the toys."""
    options = ["--num-steps", 2, "--iterations", 6, "--batch-size", 8, "--warmup", 0, "--checkpoint-every", 2]
    return ["distill", "--trajectories", toys / "store", *options, "--device", "cpu", "--out"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for every block that was run."""
    entries: list[int] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *given: entries.append(1) or forward(*given))
    return entries


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class TestCheckpointing:
    """Recomputed activations."""

    def test_a_student_with_recomputed_activations_is_the_same_to_the_byte(
        self, tmp_path: Path, made: Callable[..., str], short: list[object], ran: list[int]
    ) -> None:
        made(*short, tmp_path / "plain")
        ran.clear()
        made(*short, tmp_path / "again", "--activation-checkpointing")
        assert weights(tmp_path / "again") == weights(tmp_path / "plain")
        assert len(ran) == 6 * 2 * 4, "updates, twice, four blocks"

    def test_a_run_may_go_on_with_recomputed_activations(
        self, tmp_path: Path, made: Callable[..., str], short: list[object]
    ) -> None:
        made(*short, tmp_path / "plain")
        assert "is there already" in made(*short, tmp_path / "plain", "--activation-checkpointing")

    def test_a_teacher_with_recomputed_activations_is_the_same_to_the_byte(
        self, tmp_path: Path, made: Callable[..., str], teach_options: list[object], ran: list[int]
    ) -> None:
        words = ["teach", *teach_options, "--iterations", 3, "--out"]
        made(*words, tmp_path / "plain")
        ran.clear()
        made(*words, tmp_path / "again", "--activation-checkpointing")
        assert weights(tmp_path / "again") == weights(tmp_path / "plain")
        assert len(ran) == 3 * 2 * 4
