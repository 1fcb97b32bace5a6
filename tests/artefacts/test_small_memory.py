"""Training in little memory, by the commands: what changes no bit, and what is published all the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW

from ard.networks.dit_layers import Block
from ard.training.loop import TrainConfig, learning_rate
from ard.training.state import AverageOn, checkpoints, new_state


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


class TestAverage:
    """Where the moving average is kept."""

    def test_an_average_on_the_cpu_is_the_devices_where_the_cpu_is_the_device(
        self, tmp_path: Path, made: Callable[..., str], short: list[object]
    ) -> None:
        made(*short, tmp_path / "device")
        made(*short, tmp_path / "cpu", "--average-on", "cpu")
        assert weights(tmp_path / "cpu") == weights(tmp_path / "device")
        assert json.loads((tmp_path / "cpu" / "run.json").read_text())["train"]["average_on"] == "cpu"
        assert "average_on" not in json.loads((tmp_path / "device" / "run.json").read_text())["train"]

    def test_weights_of_a_gpu_are_averaged_in_main_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        devices: list[str] = []
        monkeypatch.setattr(
            torch, "_foreach_lerp_", lambda *given: devices.extend(one.device.type for one in [*given[0], *given[1]])
        )
        with FakeTensorMode():  # A GPU without values, on any machine.
            module = nn.Module()
            module.weight = nn.Parameter(torch.zeros(3, device="cuda"))
            for place in AverageOn:
                new_state(module, AdamW(module.parameters()), average_on=place).average_weights(0.5)
        assert devices == ["cuda", "cuda", "cpu", "cpu"]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_the_average_of_a_gpus_weights_is_the_same_in_main_memory(self) -> None:
        module = nn.Linear(100, 100, device="cuda")
        states = [new_state(module, AdamW(module.parameters()), average_on=place) for place in AverageOn]
        for step in range(5):
            with torch.no_grad():
                module.weight.add_(torch.randn_like(module.weight))
            for state in states:
                state.step = step
                state.average_weights(0.9)
        for first, second in zip(states[0].average, states[1].average, strict=True):
            torch.testing.assert_close(first.cpu(), second)


class TestLora:
    """Adapters, from the command to the published student."""

    def test_an_interrupted_run_with_adapters_ends_with_the_same_bytes(
        self,
        tmp_path: Path,
        command: Callable[..., Any],
        made: Callable[..., str],
        short: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def rate(config: TrainConfig, step: int) -> float:
            if step == 5:
                raise KeyboardInterrupt
            return learning_rate(config, step)

        lora = ["--lora-rank", 2, "--lora-alpha", 8, "--learning-rate", "3e-3"]
        with monkeypatch.context() as patch:
            patch.setattr("ard.training.loop.learning_rate", rate)
            assert command(*short, tmp_path / "cut", *lora).returncode == 130
        assert checkpoints(tmp_path / "cut" / "checkpoints")[-1].stem == "step-0000004"
        made(*short, tmp_path / "cut", *lora)
        made(*short, tmp_path / "whole", *lora)
        assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
        cut, whole = (load_file(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("cut", "whole"))
        assert cut.keys() == whole.keys()
        assert all(torch.equal(cut[name], whole[name]) for name in cut)

    def test_the_published_student_is_an_ordinary_one_with_the_teachers_embedders(
        self, toys: Path, tmp_path: Path, made: Callable[..., str], short: list[object]
    ) -> None:
        made(*short, tmp_path / "lora", "--lora-rank", 2, "--learning-rate", "3e-3")
        made(*short, tmp_path / "full")
        ours, full = load_file(tmp_path / "lora/model.safetensors"), load_file(tmp_path / "full/model.safetensors")
        teachers = load_file(toys / "teacher/model.safetensors")
        assert {name: one.shape for name, one in ours.items()} == {name: one.shape for name, one in full.items()}
        same = {name for name, one in teachers.items() if torch.equal(ours[f"network.{name}"], one)}
        assert {name for name in teachers if "_embedder." in name or "blocks.0.adaLN" in name} <= same
        assert not any(name in same for name in ("blocks.0.attn.qkv.weight", "blocks.3.mlp.fc2.weight"))
        change = ours["network.blocks.1.mlp.fc1.weight"] - teachers["blocks.1.mlp.fc1.weight"]
        assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) == 2
        made("sample", "--student", tmp_path / "lora", "--seeds", "0-3", "--out", tmp_path / "grid.png")

    def test_checkpoints_hold_what_is_trained_only(
        self, tmp_path: Path, made: Callable[..., str], short: list[object]
    ) -> None:
        made(*short, tmp_path / "lora", "--lora-rank", 2)
        names = load_file(checkpoints(tmp_path / "lora" / "checkpoints")[-1]).keys()
        held = {name.removeprefix("model.") for name in names if name.startswith("model.")}
        assert held == {name.removeprefix("average.") for name in names if name.startswith("average.")}
        assert not any("base_layer" in name or "embedder" in name for name in held)


class TestCompiled:
    """Compiled blocks."""

    def test_a_student_and_a_teacher_are_trained_with_compiled_blocks(
        self,
        tmp_path: Path,
        made: Callable[..., str],
        short: list[object],
        teach_options: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ran: list[str] = []

        def counted(part: Callable[..., Any], **_: Any) -> Callable[..., Any]:
            return lambda *given: ran.append(part.__name__) or part(*given)

        made(*short, tmp_path / "plain")
        monkeypatch.setattr(torch, "compile", counted)
        made(*short, tmp_path / "compiled", "--compile")
        assert ran == ["enter", "leave"] * 4 * 6
        assert weights(tmp_path / "compiled") == weights(tmp_path / "plain")
        made("teach", *teach_options, "--iterations", 2, "--compile", "--out", tmp_path / "teacher")
        assert len(ran) == 2 * 4 * (6 + 2)
