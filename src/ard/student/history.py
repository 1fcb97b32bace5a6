"""History: which steps a step may read, how it reads them, and the cache that holds them in sampling.

Steps are in generation order: step 0 reads the noise. The paper counts down, s = num_steps - step.
"""

from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ard.core.types import Heads, HistoryHeads

StepHeads = Float[Tensor, "batch step head token head_width"]
Gate = Float[Tensor, " head"]


class HistoryMask(StrEnum):
    """Which steps a step may read (Figure 3b)."""

    DIAGONAL = "diagonal"  # M1: itself only, which is step distillation.
    WINDOW = "window"  # M2: itself and the step before it.
    ANCHOR = "anchor"  # M3: itself and the initial noise.
    CAUSAL = "causal"  # M4: every step so far, ARD's default.

    @classmethod
    def _missing_(cls, value: object) -> "HistoryMask | None":
        """The paper's names M1 to M4 are understood too."""
        return next((mask for mask in cls if mask.number == value), None)

    @property
    def number(self) -> str:
        """The paper's name, M1 to M4."""
        return f"M{list(HistoryMask).index(self) + 1}"

    def readable(self, step: int) -> range:
        """The earlier steps that `step` reads, always one run of neighbours, so that reading them is a slice."""
        match self:
            case HistoryMask.DIAGONAL:
                return range(0)
            case HistoryMask.WINDOW:
                return range(max(step - 1, 0), step)
            case HistoryMask.ANCHOR:
                return range(min(step, 1))
            case HistoryMask.CAUSAL:
                return range(step)


class HistoryAttention(StrEnum):
    """How the history enters attention."""

    SHARED = "shared"  # The paper: one softmax over the step's own keys and the history's.
    GATED = "gated"  # A softmax of its own over the history's keys, added through a gate that starts at zero.


def attend(q: Heads, k: Heads, v: Heads, k_history: HistoryHeads, v_history: HistoryHeads, gate: Gate | None) -> Heads:
    """The queries of one step on its own keys and on its history's; `gate` is None for SHARED.

    There is no mask: the history holds only what the step may read.
    """
    if k_history.shape[2] == 0:
        return scaled_dot_product_attention(q, k, v)
    if gate is None:
        return scaled_dot_product_attention(q, torch.cat([k_history, k], 2), torch.cat([v_history, v], 2))
    own = scaled_dot_product_attention(q, k, v)
    return own + gate.view(-1, 1, 1) * scaled_dot_product_attention(q, k_history, v_history)


def attend_all_steps(
    q: StepHeads, k: StepHeads, v: StepHeads, *, mask: HistoryMask, gates: Float[Tensor, "step head"] | None
) -> StepHeads:
    """Training: every step on its own history, as one unmasked call per step. `gates` is None for SHARED.

    Exact, and cheaper than one call with a dense mask, which would forbid the fast kernels.
    """
    outputs = []
    for step in range(q.shape[1]):
        readable = mask.readable(step)
        k_history, v_history = (x[:, readable.start : readable.stop].transpose(1, 2).flatten(2, 3) for x in (k, v))
        gate = None if gates is None else gates[step]
        outputs.append(attend(q[:, step], k[:, step], v[:, step], k_history, v_history, gate))
    return torch.stack(outputs, dim=1)


class KVCache:
    """Keys and values of the steps in the lowest N blocks, allocated once; a step that nobody reads any more gives way.

    With one softmax (SHARED) a step writes its own beside its history's, so that what it attends to is one slice and
    nothing is ever concatenated. With a softmax apart (GATED) only what a later step reads is written.
    """

    def __init__(
        self,
        mask: HistoryMask,
        history: HistoryAttention,
        *,
        num_steps: int,
        history_blocks: int,
        batch: int,
        num_heads: int,
        num_tokens: int,
        head_width: int,
        like: Tensor,
    ) -> None:
        self.mask = mask
        self.num_tokens = num_tokens
        # By step, and looked up: torch.compile takes the numbers of steps for variables, until they index something.
        self.readable = [mask.readable(step) for step in range(num_steps)]
        self.is_read = [any(step in later for later in self.readable[step + 1 :]) for step in range(num_steps)]
        longest = max(len(readable) for readable in self.readable)
        own = longest > 0 and history is HistoryAttention.SHARED
        self.slots = longest + own
        shape = (2, history_blocks, batch, num_heads, self.slots * num_tokens, head_width)
        self.store = torch.empty(shape, dtype=like.dtype, device=like.device)

    def attend(self, block: int, step: int, q: Heads, k: Heads, v: Heads, gate: Gate | None) -> Heads:
        """The queries of `step` on its own keys and its history's, which are kept for later; SHARED has no gate."""
        if self.slots == 0:
            return scaled_dot_product_attention(q, k, v)
        if gate is None:
            self._put(block, step, k, v)
            return scaled_dot_product_attention(q, *self._slots(block, 0, len(self.readable[step]) + 1))
        output = attend(q, k, v, *self.read(block, step), gate)
        if self.is_read[step]:
            self._put(block, step, k, v)
        return output

    def read(self, block: int, step: int) -> tuple[HistoryHeads, HistoryHeads]:
        """The keys and values of the earlier steps that `step` may read: views, not copies."""
        readable = self.readable[step]
        return self._slots(block, self._slot(readable.start) if readable else 0, len(readable))

    def _slot(self, step: int) -> int:
        """Where the keys and values of `step` are: a ring, but M3 never gives the noise's place away."""
        return min(step, self.slots - 1) if self.mask is HistoryMask.ANCHOR else step % self.slots

    def _slots(self, block: int, first: int, count: int) -> tuple[HistoryHeads, HistoryHeads]:
        place = slice(first * self.num_tokens, (first + count) * self.num_tokens)
        return self.store[0, block, :, :, place], self.store[1, block, :, :, place]

    @torch.no_grad()
    def _put(self, block: int, step: int, k: Heads, v: Heads) -> None:
        for kept, given in zip(self._slots(block, self._slot(step), 1), (k, v), strict=True):
            kept.copy_(given)
