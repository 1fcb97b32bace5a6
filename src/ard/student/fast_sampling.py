"""Fast sampling: what depends on no image is prepared once, and the steps run without a detour.

`sample` is the reference; a `FastSampler` draws the same images within rounding. What it saves:

- the modulations (adaLN) of all steps and blocks are one matrix product, instead of one per step and block; with a text
  they are constants, and its keys and values are made once, instead of once per step;
- the state stays a sequence of patches from step to step, and no output is computed that nobody reads;
- weights are cast once, or packed once on a CPU; what a step adds to every token, and its solver step, are constants;
- on CUDA all steps are one graph per batch size, with the attention kernel that is the fastest for it.
"""

import copy
import functools
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, silu

from ard.core.cuda_graphs import captured, with_fastest_attention
from ard.core.devices import autocast_dtype, require_compiler
from ard.core.types import Labels, Latents, Patches
from ard.networks.condition import Condition, Prompts, TextMask, TextTokens
from ard.networks.dit_layers import modulate
from ard.networks.registry import require_dit
from ard.student.packed_weights import with_packed_weights
from ard.student.sampling import sample
from ard.student.student import History, Student

Draw = Callable[[Latents, Condition], Latents]
Blocks = list[tuple[Callable[..., Any], Callable[..., Any]]]  # Up to the attention, and from it on.
Modulations = list[Float[Tensor, "step batch modulation"]]  # A table per block, then per output layer.


class Speed(StrEnum):
    """How a student's images are drawn."""

    REFERENCE = "reference"  # Step by step through the student, in its own precision.
    FAST = "fast"  # Prepared; in bf16 on a GPU that has it.
    COMPILED = "compiled"  # And its blocks compiled, which takes seconds to minutes first.


def drawing(student: Student, speed: Speed) -> Draw:
    """What makes a student's images from noises and conditions."""
    if speed is Speed.REFERENCE:
        return lambda noise, condition: sample(student, noise, condition=condition)[:, -1]
    dtype = autocast_dtype(student.tau.device)
    sampler = FastSampler(student, dtype=dtype, compiled=speed is Speed.COMPILED)
    return lambda noise, condition: sampler(noise, condition=condition)


class FastSampler:
    """Draws a student's images; prepared once. Each call has a KV cache of its own, except on CUDA: one call at a time.

    `dtype` is that of the weights and of what they compute, cast once (None: the student's); states keep the noise's.
    `compiled` compiles the blocks, which takes seconds to minutes when a batch size is new.
    """

    def __init__(self, student: Student, *, dtype: torch.dtype | None = None, compiled: bool = False) -> None:
        given = require_dit(student.network).x_embedder.weight.dtype
        self.dtype = dtype or given
        self.student = student if self.dtype == given else copy.deepcopy(student).to(self.dtype)
        self.student = self.student if compiled else with_packed_weights(self.student)
        kind = _ClassModulation if student.network.config.text is None else _TextModulation
        self.modulation: Callable[..., Modulations] = kind(student, self.dtype)
        self.steps = [_constants(student, step, self.dtype) for step in range(student.config.num_steps)]
        blocks: Any = self.student.network.blocks
        self.blocks: Blocks = [(block.enter, block.leave) for block in blocks]
        if compiled:
            require_compiler(student.tau.device)
            static = functools.partial(torch.compile, fullgraph=True, dynamic=False)
            self.blocks = [(static(enter), static(leave)) for enter, leave in self.blocks]
        self._graphs: dict[tuple[torch.Size, ...], Callable[..., Tensor]] = {}

    @torch.no_grad()
    def __call__(self, noise: Latents, *, condition: Condition) -> Latents:
        """The image of each noise and its condition."""
        parts = (condition.tokens, condition.mask) if isinstance(condition, Prompts) else (condition,)
        given = (noise, *parts)
        if noise.device.type != "cuda":
            return self._draw(*given)
        if (shapes := tuple(one.shape for one in given)) not in self._graphs:
            draw = with_fastest_attention(self._draw, *given)
            self._graphs[shapes] = captured(draw, *given)
        return self._graphs[shapes](*given)

    def _draw(self, noise: Latents, *condition: Tensor) -> Latents:
        network, cache = require_dit(self.student.network), self.student.make_cache(noise)
        tables, blocks, state = self.modulation(*condition), self._reading(*condition), network.patchify(noise)
        for step, constants in enumerate(self.steps):
            history = History(self.student, step, 1, cache)
            state = self._step(state, constants, [table[step] for table in tables], blocks, history)
        return network.unpatchify(state.unflatten(2, (network.config.channels, -1)).transpose(2, 3).flatten(2))

    def _reading(self, *condition: Tensor) -> Blocks:
        """The blocks; with a text, each has the keys and values of its own."""
        if self.student.network.config.text is None:
            return self.blocks
        tokens, mask = condition
        network: Any = self.student.network
        text = network.y_embedder.text(tokens)
        keys = (block.cross_attn.keys(text, mask) for block in network.blocks)
        return [
            (enter, functools.partial(leave, text=own)) for (enter, leave), own in zip(self.blocks, keys, strict=True)
        ]

    def _step(
        self, state: Patches, own: "_Step", modulations: list[Tensor], blocks: Blocks, history: History
    ) -> Patches:
        """The next state, in patches whose values are ordered as the embedder reads them."""
        tokens = linear(state.to(self.dtype), require_dit(self.student.network).x_embedder.weight) + own.added
        for index, (enter, leave) in enumerate(blocks):
            shift, scale, *rest = modulations[index].chunk(6, dim=-1)
            tokens = leave(tokens, history(index, *enter(tokens, shift, scale)), *rest)
        output = linear(modulate(tokens, *modulations[own.head].chunk(2, dim=-1)), own.weight, own.bias)
        return own.keep * state + own.move * output.to(state.dtype)


class _Step(NamedTuple):
    """The constants of one step."""

    added: Float[Tensor, "token embedding"]
    """What every embedded patch gets: its position, the step's embedding and the embedder's bias."""
    head: int
    """Where the output layer's modulation is."""
    weight: Float[Tensor, "patch embedding"]
    """The output layer's, for the state's values and in their order."""
    bias: Float[Tensor, " patch"]
    keep: float
    move: float
    """The next state is keep x + move output."""


def _constants(student: Student, step: int, dtype: torch.dtype) -> _Step:
    network, config = require_dit(student.network), student.network.config
    heads = _heads(student)
    place = step % len(heads)
    side, channels = config.patch_size, config.channels
    rows = torch.arange(heads[place].linear.out_features).view(side * side, -1)  # pixel c; learned sigma comes last
    order = rows[:, :channels].T.flatten().to(student.tau.device)
    t, t_next = (student.tau[step + i].double().cpu().view(1) for i in (0, 1))
    zero, one = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (0, 1))
    return _Step(
        added=(network.pos_embed + student.step_embedding[step] + network.x_embedder.bias).detach().to(dtype),
        head=config.depth + place,
        weight=heads[place].linear.weight[order].detach().to(dtype),
        bias=heads[place].linear.bias[order].detach().to(dtype),
        keep=float(student.next_state(one, zero, t, t_next)),
        move=float(student.next_state(zero, one, t, t_next)),
    )


def _heads(student: Student) -> list[Any]:
    """One output layer for all steps, or one for each."""
    return list(student.step_heads) or [student.network.final_layer]


class _ClassModulation:
    """All modulations at once: of every step, block and output layer, from the labels."""

    def __init__(self, student: Student, dtype: torch.dtype) -> None:
        network = require_dit(student.network)
        parts: list[Any] = [*network.blocks, *_heads(student)]
        layers = [part.adaLN_modulation[1] for part in parts]
        tau = student.tau[:-1].to(network.x_embedder.weight.dtype)
        self.embed: Callable[[Labels], Tensor] = network.y_embedder
        self.sizes = [layer.out_features for layer in layers]
        with torch.no_grad():
            self.time = network.t_embedder(student.diffusion.network_time(tau)).unsqueeze(1)  # step 1 embedding
            self.weight = torch.cat([layer.weight for layer in layers]).to(dtype)
            self.bias = torch.cat([layer.bias for layer in layers]).to(dtype)

    def __call__(self, label: Labels) -> Modulations:
        """In the network's order."""
        condition = silu(self.time + self.embed(label)).to(self.weight.dtype)  # step batch embedding
        return list(linear(condition, self.weight, self.bias).split(self.sizes, dim=-1))


class _TextModulation:
    """The same for students that read text: it depends on the step alone."""

    def __init__(self, student: Student, dtype: torch.dtype) -> None:
        network: Any = student.network
        tau = student.tau[:-1].to(network.x_embedder.weight.dtype)
        with torch.no_grad():
            vector, shared = network.y_embedder.times(network.t_embedder(student.diffusion.network_time(tau)))
            tables = [block.modulation(shared) for block in network.blocks]
            tables += [head.modulation(vector) for head in _heads(student)]
        self.tables = [table.to(dtype).unsqueeze(1) for table in tables]  # step 1 modulation

    def __call__(self, tokens: TextTokens, _mask: TextMask) -> Modulations:
        """In the network's order."""
        return [table.expand(-1, len(tokens), -1) for table in self.tables]
