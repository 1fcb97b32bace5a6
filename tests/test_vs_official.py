"""The comparison with the authors' code, as far as it goes without that code, which is no part of this project."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ard.bench.contenders import random_network, random_student
from ard.core.errors import InputError
from ard.networks.transformer import Transformer, TransformerConfig, initialise
from ard.student.lora import add_adapters
from ard.student.student import StudentConfig

SHAPE = TransformerConfig(
    width=16, depth=2, num_heads=2, patch_size=2, latent_size=8, channels=3, num_classes=4, learn_sigma=True
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks/vs_official.py"
    spec = importlib.util.spec_from_file_location("vs_official", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vs_official"] = module
    spec.loader.exec_module(module)
    return module


def test_a_folder_without_their_models_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no models_ARD.py; name a clone"):
        script.official_models(tmp_path)


def test_every_weight_of_the_student_gets_a_name_of_theirs(script: ModuleType) -> None:
    student = script.make_student(SHAPE, 1, torch.device("cpu"))
    weights = script.official_weights(student)
    outputs = {name.split(".")[0] for name in weights if name.startswith("final_layer")}
    assert outputs == {"final_layer", "final_layer2", "final_layer3", "final_layer4"}
    assert not torch.equal(weights["final_layer.linear.weight"], weights["final_layer4.linear.weight"])
    assert weights["x_embedder.proj.weight"].shape == (16, 3, 2, 2)
    given = sum(one.numel() for one in student.parameters())
    left_out = student.step_embedding.numel() + sum(one.numel() for one in student.network.final_layer.parameters())
    assert sum(one.numel() for one in weights.values()) == given - left_out + student.network.pos_embed.numel()
    assert not student.step_embedding.any(), "theirs has none"


class OneDevice(TorchFunctionMode):
    """Fails where a generator draws into a tensor of another device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        generator = (kwargs or {}).get("generator")
        tensors = [one for one in args if isinstance(one, torch.Tensor)]
        if generator is not None:
            assert {one.device.type for one in tensors} <= {generator.device.type}, f"{func} draws elsewhere"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_random_weights_are_drawn_for_any_device(script: ModuleType, device: str) -> None:
    """The meta device stands for a GPU: it is not the generators'."""
    with OneDevice():
        student = script.make_student(SHAPE, 1, torch.device(device))
        network = random_network(SHAPE, torch.device(device))
        random_student(network, StudentConfig(num_steps=2))
        initialise(Transformer(SHAPE).to(device), torch.Generator())
        bare = random_student(network, StudentConfig(num_steps=2))
        add_adapters(bare, rank=2, alpha=2.0, generator_of=lambda _: torch.Generator())
    assert {parameter.device.type for parameter in student.parameters()} == {device}


def test_patches_are_embedded_alike(script: ModuleType) -> None:
    student = script.make_student(SHAPE, 1, torch.device("cpu"))
    weights, x = script.official_weights(student), torch.randn(2, 3, 8, 8)
    theirs = script._PatchEmbed(8, 2, 3, 16, bias=True)
    theirs.proj.load_state_dict({name: weights[f"x_embedder.proj.{name}"] for name in ("weight", "bias")})
    torch.testing.assert_close(theirs(x) + weights["pos_embed"], student.network.embed(x), rtol=1e-5, atol=1e-5)


def test_a_step_has_their_times(script: ModuleType) -> None:
    student = script.make_student(SHAPE, 1, torch.device("cpu"))
    times = student.diffusion.network_time(student.tau[:-1])
    torch.testing.assert_close(times, 999 * torch.tensor([1, 3 / 4, 2 / 4, 1 / 4]))
