"""How the teacher's network is run while trajectories are made, and how far that is from eager float32."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ard.core.config import later
from ard.core.cuda_graphs import captured
from ard.core.devices import Precision, require_compiler
from ard.core.types import Latents
from ard.networks.condition import Condition, Prompts
from ard.networks.transformer import Backbone
from ard.teacher.teacher import Ode, Teacher, solve_pf_ode


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the network is run. The ODE's state is float32 whatever it is."""

    precision: Precision = later(Precision.FP32)
    """Of the network and its weights. bf16 is slower on CPUs that have no products in it. It makes slightly other
    trajectories; how far their images are from those of fp32 is measured, printed and recorded."""
    compile: bool = later(False)
    """Compile the network, and on CUDA replay it as a graph. The trajectories differ in their last bits."""


def executed(teacher: Teacher, execution: Execution) -> Teacher:
    """`teacher` with a network that runs so; the given one stays as it is."""
    if execution == Execution():
        return teacher
    network = copy.deepcopy(teacher.network)
    if execution.precision is Precision.BF16:
        network = network.to(torch.bfloat16)
    return replace(teacher, network=_compiled(network) if execution.compile else network)


def relative_error(teacher: Teacher, other: Teacher, noise: Latents, condition: Condition, *, ode: Ode) -> float:
    """How far `other`'s images are from `teacher`'s, from the same noises: the norm of their difference by theirs."""
    image, other_image = (
        solve_pf_ode(one, noise, condition, ode=ode, kept=(ode.num_teacher_steps,)).x_t[:, -1]
        for one in (teacher, other)
    )
    return float((other_image - image).norm() / image.norm())


def _compiled(network: Backbone) -> Backbone:
    """`network`, compiled: kernels for each shape, so that no batch's bits depend on the ones before it."""
    require_compiler(next(network.parameters()).device)
    run = Graphed(torch.compile(network.forward, dynamic=False, fullgraph=True))
    network.forward = run  # type: ignore[method-assign, assignment]  # The network is called as ever, and runs this.
    return network


class Graphed:
    """`function`, on CUDA captured as a graph for each of its tensors' shapes; elsewhere, or of text, just called."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._graphs: dict[tuple[torch.Size, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Tensor | Prompts) -> Tensor:
        """What `function` returns. A batch with and without guidance, and a short last one, have a graph each."""
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        if tensors[0].device.type != "cuda" or len(tensors) < len(inputs):
            return self.function(*inputs)
        shapes = tuple(one.shape for one in tensors)
        if shapes not in self._graphs:
            self._graphs[shapes] = captured(self.function, *tensors)
        return self._graphs[shapes](*tensors)
