"""LoRA (Hu et al., 2022): a student that learns low-rank changes of its teacher's blocks, W + alpha / rank B A."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.core.extras import importing
from ard.core.model_folder import StateDict
from ard.core.offline import offline
from ard.networks.drawing import draw
from ard.networks.transformer import Backbone, Transformer
from ard.student.student import Student

ADAPTED = ["qkv", "q", "kv", "proj", "fc1", "fc2"]  # Of DiT and PixArt: the linear layers of attentions and MLP.
BASE, A, B = "base_layer.", "lora_A.default.weight", "lora_B.default.weight"  # As peft names them.


@offline()
def add_adapters(student: Student, *, rank: int, alpha: float, generator_of: Callable[[str], torch.Generator]) -> None:
    """Freeze the teacher's network and give its blocks adapters; MissingExtraError without the package.

    Nothing changes before the first update, because B is zero; A is drawn from `generator_of` its name. What the
    teacher does not have (step embedding, gates, step heads) and the output head are trained in full.
    """
    peft, network = _peft(), student.network.requires_grad_(False)
    layers = adapted_layers(network)
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers), network.blocks)
    head = student.step_heads or network.final_layer
    head.requires_grad_(True)
    for name, parameter in student.named_parameters():
        if name.endswith(A):
            draw(parameter, _uniform(parameter, generator_of(name)))


def adapted_layers(network: Backbone) -> list[str]:
    """The names, within the blocks, of the layers that get adapters; InputError when there are none.

    Of DiT and PixArt those of attentions and MLP. Another architecture has names of its own: all its linear layers.
    """
    linear = [name for name, layer in network.blocks.named_modules() if isinstance(layer, nn.Linear)]
    if isinstance(network, Transformer):
        return [name for name in linear if name.rpartition(".")[2] in ADAPTED]
    if not linear:
        raise InputError(
            f"--lora-rank adapts linear layers, and the blocks of {network.config.backbone} have none; leave it out"
        )
    return linear


def merged(weights: StateDict, *, rank: int, alpha: float) -> StateDict:
    """The weights of an ordinary student from those of one with adapters: W + alpha / rank B A under W's name."""
    weights = {name: value.cpu() for name, value in weights.items()}
    for name in [name for name in weights if name.endswith(f"{BASE}weight")]:
        stem = name.removesuffix(f"{BASE}weight")
        weights[name] = weights[name] + alpha / rank * weights.pop(stem + B) @ weights.pop(stem + A)
    return {name.replace(BASE, ""): value for name, value in weights.items()}


def _uniform(parameter: Tensor, generator: torch.Generator) -> Callable[[Tensor], object]:
    """What draws with the variance of torch's linear layers, as peft does, but from an address."""
    bound = 1 / math.sqrt(parameter.shape[1])
    return partial(nn.init.uniform_, a=-bound, b=bound, generator=generator)


def _peft() -> Any:
    with importing("peft", "lora"):
        import peft
    return peft
