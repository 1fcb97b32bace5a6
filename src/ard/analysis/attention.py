"""Where a step looks: the share of its attention that goes to each step's input, per layer (Figure 4).

Steps and layers count from 0 in tensors, and from 1 in rows, tables and figures, as the paper does: the input of the
1st step is the noise. A layer is a transformer block.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from ard.core.types import Heads, Latents, Tokens
from ard.networks.condition import Condition
from ard.networks.dit_layers import Attend
from ard.networks.pixart_layers import Conditioning
from ard.reporting.figures import HeatMap, heat_maps
from ard.student.history import Gate, KVCache
from ard.student.sampling import sample
from ard.student.student import History, Student

StepShares = Float[Tensor, "step layer read"]
Observe = Callable[[int, KVCache, int, Heads, Heads], None]  # step, cache, layer, q, k


def attention_shares(q: Heads, keys: Sequence[Heads], gate: Gate | None) -> Float[Tensor, " read"]:
    """The share of each step in `keys`, the own step last: the mean over images, heads and queries; the sum is 1.

    SHARED (`gate` is None): the attention weights of the one softmax, summed over the step's keys, as in Figure 4.
    GATED: the output is own + g · history, each with weights that sum to 1, so the absolute weights sum to 1 + |g|.
    The own step has the share 1 / (1 + |g|); |g| / (1 + |g|) is divided as the history's own softmax divides it.
    """
    if gate is None:
        return _weights(q, keys).mean(dim=(1, 2, 3))
    if len(keys) == 1:
        return q.new_ones(1)
    opened = gate.abs() / (1 + gate.abs())
    history = _weights(q, keys[:-1]) * opened.view(-1, 1)
    return torch.cat([history.mean(dim=(1, 2, 3)), 1 - opened.mean(0, keepdim=True)])


def _weights(q: Heads, keys: Sequence[Heads]) -> Float[Tensor, "read row head token"]:
    """Summed attention weights per step and query: exp(lse_j - lse_all). One step's scores exist at a time."""
    scale = q.shape[3] ** -0.5
    lse = [(q * scale @ k.transpose(2, 3)).logsumexp(dim=3) for k in keys]
    return torch.stack(lse).softmax(dim=0)


def sampled_shares(student: Student, noise: Latents, *, condition: Condition) -> StepShares:
    """The shares while `student` samples from `noise` with its own history; NaN where a step may not read."""
    num_steps, depth = student.config.num_steps, student.network.config.depth
    shares = torch.full((num_steps, depth, num_steps), math.nan, dtype=torch.float64)

    def observe(step: int, cache: KVCache, layer: int, q: Heads, k: Heads) -> None:
        reads, keys, gate = _read(student, step, cache, layer, k)
        shares[step, layer, reads] = attention_shares(q, keys, gate).double().cpu()

    with _observed(student, observe):
        sample(student, noise, condition=condition)
    return shares


def mean_shares(
    student: Student, noise: Latents, condition: Condition, *, batch_size: int, progress: Callable[[int], object]
) -> StepShares:
    """`sampled_shares` over any number of images, `batch_size` at a time."""
    total: Tensor = torch.zeros((), dtype=torch.float64)
    device = student.tau.device
    for x, y in zip(noise.split(batch_size), condition.split(batch_size), strict=True):
        total = total + len(x) * sampled_shares(student, x.to(device), condition=y.to(device))
        progress(len(x))
    return total / len(noise)


def mean_gates(student: Student) -> Float[Tensor, "step gated_layer"]:
    """Mean |g| over the heads; no layers when there are no gates."""
    return student.gates.detach().abs().mean(dim=2).T.double().cpu()


def _read(
    student: Student, step: int, cache: KVCache, layer: int, k: Heads
) -> tuple[list[int], list[Heads], Gate | None]:
    """(which steps `step` reads in a layer, their keys as the cache has them, the gate); the own step is the last."""
    earlier = student.config.mask.readable(step) if layer < student.config.history_blocks else range(0)
    gate = student.gates[layer, step] if layer < student.gated_blocks else None
    past = cache.read(layer, step)[0].split(k.shape[2], dim=2) if earlier else ()
    return [*earlier, step], [*past, k], gate


@contextmanager
def _observed(student: Student, observe: Observe) -> Iterator[None]:
    """Let `observe` see each attention in sampling before it is computed; the student computes what it always does."""

    def watch(
        _module: object, arguments: tuple[Tokens, Conditioning, History, int]
    ) -> tuple[Tokens, Conditioning, Attend, int]:
        tokens, condition, history, layer = arguments

        def attend(block: int, q: Heads, k: Heads, v: Heads) -> Heads:
            if history.cache is not None:
                observe(history.step, history.cache, block, q, k)
            return history(block, q, k, v)

        return tokens, condition, attend, layer

    handles = [block.register_forward_pre_hook(watch) for block in student.network.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class ShareRow:
    """One cell of Figure 4; steps and layers count from 1."""

    student: str
    step: int
    layer: int
    reads: int
    """The step whose input is read: 1 is the noise, `step` is the recent state."""
    share: float
    uniform: float
    """The share if every input that may be read got the same: 1 / their number."""
    gate: float | None
    """GATED: mean |g| over the heads; None in a layer without history and for SHARED."""


def share_rows(name: str, student: Student, shares: StepShares) -> list[ShareRow]:
    """Every share of a student that is not NaN, as rows."""
    gates = mean_gates(student)
    rows = []
    for step, layer, reads in shares.isfinite().nonzero().tolist():
        gate = float(gates[step, layer]) if step > 0 and layer < student.gated_blocks else None
        uniform = 1 / int(shares[step, layer].isfinite().sum())
        share, place = float(shares[step, layer, reads]), {"step": step + 1, "layer": layer + 1, "reads": reads + 1}
        rows.append(ShareRow(student=name, **place, share=share, uniform=uniform, gate=gate))
    return rows


def shares_figure(name: str, student: Student, shares: StepShares) -> str:
    """Figure 4 for one student as SVG: a panel per step from the 2nd on, a row per layer, the lowest at the bottom."""
    depth = student.network.config.depth
    panels = [
        HeatMap(
            title=f"{ordinal(step + 1)} step",
            values=shares[step, :, : step + 1].flip(0).tolist(),
            x_ticks=["noise", *(ordinal(reads + 1) for reads in range(1, step + 1))],
            y_ticks=[str(layer) for layer in range(depth, 0, -1)],
        )
        for step in range(1, student.config.num_steps)
    ]
    title = f"{name}\nshare of attention" + (", |gate| included" if student.gated_blocks else "")
    return heat_maps(panels, title=title, x_label="input read", y_label="layer", values_label="share")


def shares_summary(student: Student, shares: StepShares) -> str:
    """The mean over the layers that read the history, a line per step from the 2nd on."""
    num_steps, layers = student.config.num_steps, student.config.history_blocks
    gates = mean_gates(student)
    names = ["step", "noise", *(ordinal(step + 1) for step in range(1, num_steps)), "uniform"]
    lines = ["".join(name.rjust(9) for name in [*names, *(["mean |g|"] if student.gated_blocks else [])])]
    for step in range(1, num_steps):
        means = shares[step, :layers].mean(dim=0).tolist()
        found = [mean for mean in means if not math.isnan(mean)]
        cells = ["–" if math.isnan(mean) else f"{mean:.3f}" for mean in means] + [f"{1 / len(found):.3f}"]
        cells += [f"{fmean(gates[step].tolist()):.3f}"] if student.gated_blocks else []
        lines.append("".join(cell.rjust(9) for cell in [ordinal(step + 1), *cells]))
    return "\n".join(lines)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th … as the paper names its steps."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number // 10 % 10 == 1 else endings.get(number % 10, 'th')}"
