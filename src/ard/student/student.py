"""The student G_theta: the teacher's network plus two reshapes and, in its lowest blocks, a history to read."""

import copy
import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.core.types import Heads, Latents, Patches, States, Times, Tokens
from ard.diffusion.process import Diffusion, DiffusionKind
from ard.networks.condition import Condition
from ard.networks.dit_layers import attend_self
from ard.networks.transformer import Backbone, vector_of
from ard.student.history import HistoryAttention, HistoryMask, KVCache, attend_all_steps


class StateKind(StrEnum):
    """What the states of a trajectory are."""

    X_T = "x_t"  # The ODE's states, as the paper's equations have them.
    X_0_HAT = "x_0_hat"  # Noise first, then the teacher's clean estimates, as the authors' re-implementation has them.


class Prediction(StrEnum):
    """What the student's output means."""

    SOLVER_STEP = "solver_step"  # The teacher's quantity (eps or v), followed by one solver step to the next state.
    BOUNDED_STEP = "bounded_step"  # The same, but where VP's signal is weak its division by alpha is bounded.
    VELOCITY = "velocity"  # v (for VP Salimans and Ho's), followed by one solver step.
    CLEAN = "clean"  # The clean image, followed by one solver step.
    NEXT_STATE = "next_state"  # The next state itself: Eq. 6 read literally.


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """How a student reads its history and what it predicts."""

    num_steps: int = 4
    """S, the number of steps."""
    mask: HistoryMask = HistoryMask.CAUSAL
    """Which earlier steps a step reads: diagonal is M1 (step distillation), window M2, anchor M3, causal M4."""
    history_blocks: int = -1
    """N: the lowest N blocks read the history; -1 means all blocks."""
    history: HistoryAttention = HistoryAttention.GATED
    """How the history enters attention: gated (starts closed) or shared (the paper's single softmax)."""
    prediction: Prediction | None = None
    """What the output means; none: what suits the teacher's diffusion and the states, see `default_prediction`."""
    state: StateKind = StateKind.X_T
    """What the states are: x_t (the paper's equations) or x_0_hat (the authors' re-implementation)."""
    per_step_heads: bool = False
    """One output head per step, each started from the teacher's, instead of one for all steps."""


class Student(nn.Module):
    """Predicts the next state from the states so far (Eq. 5), in `num_steps` steps.

    Before the first update a SOLVER_STEP student on x_t states is the unguided teacher's own solver with S steps: for
    every N when the history is gated, for N = 0 when it is shared.
    """

    tau: Tensor

    def __init__(self, network: Backbone, diffusion: Diffusion, tau: tuple[float, ...], config: StudentConfig) -> None:
        super().__init__()
        self.config = _resolve(config, diffusion, depth=network.config.depth, num_states=len(tau))
        self.network = network
        self.diffusion = diffusion
        self.register_buffer("tau", torch.tensor(tau, dtype=torch.float32), persistent=False)
        self.step_embedding = nn.Parameter(torch.zeros(config.num_steps, network.config.width))
        self.gates = nn.Parameter(
            torch.zeros(self.gated_blocks, config.num_steps, network.config.num_heads), requires_grad=True
        )
        self.step_heads = nn.ModuleList(
            copy.deepcopy(network.final_layer) for _ in range(config.num_steps if config.per_step_heads else 0)
        )

    @property
    def gated_blocks(self) -> int:
        """How many blocks have a gate: N for GATED with a history to read, else none."""
        has_gates = self.config.history is HistoryAttention.GATED and self.config.mask is not HistoryMask.DIAGONAL
        return self.config.history_blocks if has_gates else 0

    def forward(self, states: States, condition: Condition, *, step: int = 0, cache: KVCache | None = None) -> States:
        """The states that follow `states`, for all S steps at once (training) or for one `step` with a `cache`.

        Each step has its own time through adaLN, computed once per (image, step), and its own token embedding. The
        states keep their precision; the network computes in that of its weights.
        """
        batch, count = states.shape[:2]
        steps = torch.arange(step, step + count, device=states.device).repeat(batch)  # row: batch major, step minor
        rows, tau = states.flatten(0, 1), self.tau.to(states.dtype)
        tokens = self.network.embed(rows.to(self.step_embedding.dtype)) + self.step_embedding[steps].unsqueeze(1)
        conditioning = self.network.condition(self.diffusion.network_time(tau[steps]), condition)
        tokens = self.network.run_blocks(tokens, conditioning, History(self, step, count, cache))
        output = self.network.unpatchify(self._head(tokens, vector_of(conditioning), step, count)).to(states.dtype)
        return self.next_state(rows, output, tau[steps], tau[steps + 1]).unflatten(0, (batch, count))

    def make_cache(self, noise: Latents) -> KVCache:
        """The cache that sampling from `noise` needs, allocated once."""
        shape = self.network.config
        return KVCache(
            self.config.mask,
            self.config.history,
            num_steps=self.config.num_steps,
            history_blocks=self.config.history_blocks,
            batch=noise.shape[0],
            num_heads=shape.num_heads,
            num_tokens=shape.num_tokens,
            head_width=shape.width // shape.num_heads,
            like=noise.new_empty(0, dtype=self.step_embedding.dtype),  # Offloaded weights may be elsewhere.
        )

    def _head(self, tokens: Tokens, vector: Tensor, step: int, count: int) -> Patches:
        if not self.step_heads:
            output: Patches = self.network.final_layer(tokens, vector)
            return output
        heads = [self.step_heads[step + i](tokens[i::count], vector[i::count]) for i in range(count)]
        return torch.stack(heads, dim=1).flatten(0, 1)

    def next_state(self, x: Latents, output: Latents, t: Times, t_next: Times) -> Latents:
        """What the network's output at the state `x` means: the state itself, or where the solver goes with it."""
        if self.config.prediction is Prediction.NEXT_STATE:
            return output
        x_0_hat, noise_hat = self._split(x, output, t)
        if self.config.state is StateKind.X_0_HAT:
            return x_0_hat
        return self.diffusion.add_noise(x_0_hat, noise_hat, t_next)

    def _split(self, x: Latents, output: Latents, t: Times) -> tuple[Latents, Latents]:
        """The clean estimate and the noise estimate that the network's output at `x` implies."""
        match self.config.prediction:
            case Prediction.VELOCITY:
                return self.diffusion.split_velocity(x, output, t)
            case Prediction.BOUNDED_STEP:
                return self.diffusion.split_velocity(x, self.diffusion.bounded_velocity(x, output, t), t)
            case Prediction.CLEAN:
                return output, self.diffusion.noise_beside(x, output, t)
            case _:
                return self.diffusion.split(x, output, t)


class History:
    """Attention with history in the lowest N blocks, plain self-attention above (Section 3.2)."""

    def __init__(self, student: Student, step: int, count: int, cache: KVCache | None) -> None:
        self.student, self.step, self.count, self.cache = student, step, count, cache

    def __call__(self, block: int, q: Heads, k: Heads, v: Heads) -> Heads:
        """The attention's output; in sampling, the keys and values of the step are kept for the later ones."""
        config = self.student.config
        if block >= config.history_blocks or config.mask is HistoryMask.DIAGONAL:
            return attend_self(block, q, k, v)
        gates = self.student.gates[block] if self.student.gated_blocks else None
        if self.cache is not None:
            return self.cache.attend(block, self.step, q, k, v, None if gates is None else gates[self.step])
        heads = (x.unflatten(0, (-1, self.count)) for x in (q, k, v))
        return attend_all_steps(*heads, mask=config.mask, gates=None if gates is None else gates[: self.count]).flatten(
            0, 1
        )


def default_prediction(diffusion: Diffusion, state: StateKind) -> Prediction:
    """What a student predicts unless it is told: what is bounded for its teacher's diffusion (docs/log.md).

    FLOW: the teacher's velocity. VP divides by alpha, .006 at pure noise, when it goes from eps to the clean image:
    there the division is bounded, and on x_0_hat states, which are no states of the ODE, the next state is predicted.
    """
    if diffusion.kind is DiffusionKind.FLOW:
        return Prediction.SOLVER_STEP
    return Prediction.NEXT_STATE if state is StateKind.X_0_HAT else Prediction.BOUNDED_STEP


def _resolve(config: StudentConfig, diffusion: Diffusion, *, depth: int, num_states: int) -> StudentConfig:
    """The configuration with prediction and N filled in; InputError when it does not fit the network or the grid."""
    if config.num_steps != num_states - 1:
        raise InputError(f"num_steps is {config.num_steps}, but the grid has {num_states - 1} steps")
    if not -1 <= config.history_blocks <= depth:
        raise InputError(
            f"history_blocks is {config.history_blocks}; the network has {depth} blocks: 0 to {depth}, or -1"
        )
    blocks = config.history_blocks
    if blocks == -1:
        blocks = 0 if config.mask is HistoryMask.DIAGONAL else depth
    prediction = config.prediction or default_prediction(diffusion, config.state)
    return dataclasses.replace(config, history_blocks=blocks, prediction=prediction)
