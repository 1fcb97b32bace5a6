"""Autoregressive distillation on one page, to be read with the paper (Kim et al., CVPR 2025) beside it.

Dense masks and no cache: slow and plain. `history.py`, `models/student.py` and `sampling.py` compute the same quickly,
and the tests hold them to this page. Not on it: the network's own layers, and what its output means (`next_state`).

    mu   [x_tau_S, ..., x_tau_0]   a trajectory, the noise first: batch, S + 1, channel, height, width
    x    [x_tau_S, ..., x_tau_s]   the states so far, on the same axes
    S, N, P, c                     steps (here: those in x), blocks with history, tokens per state, class or text

Steps count up from the noise: position i of an axis "step" is the paper's s = S - i.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ard.core.types import Heads, States, Trajectory
from ard.networks.condition import Condition
from ard.networks.transformer import vector_of
from ard.student.history import HistoryMask
from ard.student.student import Student


def block_mask(mask: HistoryMask, *, S: int, P: int = 1) -> Bool[Tensor, "query key"]:
    """Figure 3b: whether a query may read a key, alike for all P tokens of a state."""
    query, key = torch.arange(S)[:, None], torch.arange(S)
    match mask:
        case HistoryMask.DIAGONAL:  # M1: the state itself, which is step distillation (Eq. 3).
            steps = key == query
        case HistoryMask.WINDOW:  # M2: and the one before it.
            steps = (key == query) | (key == query - 1)
        case HistoryMask.ANCHOR:  # M3: and the initial noise.
            steps = (key == query) | (key == 0)
        case HistoryMask.CAUSAL:  # M4: every state so far.
            steps = key <= query
    return steps.repeat_interleave(P, 0).repeat_interleave(P, 1)


def attention(
    q: Float[Tensor, "batch head query e"],
    k: Float[Tensor, "batch head key e"],
    *,
    mask: HistoryMask,
    S: int,
    gates: Float[Tensor, "step head"] | None = None,
) -> Float[Tensor, "batch head query key"]:
    """How much each token of a trajectory reads of each: the attention's output is this, times v (Section 3.2).

    The paper has one softmax over what may be read (SHARED). With `gates` the history has a softmax of its own, which
    enters through a gate per step and head (GATED); with closed gates that is step distillation.
    """
    P = q.shape[2] // S
    itself, allowed = (block_mask(m, S=S, P=P).to(q.device) for m in (HistoryMask.DIAGONAL, mask))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if gates is None:
        return _softmax(scores, allowed)
    gate = gates.T.repeat_interleave(P, 1).unsqueeze(-1)  # head query 1
    return _softmax(scores, itself) + gate * _softmax(scores, allowed & ~itself)


def G_theta(student: Student, x: States, c: Condition) -> States:
    """Eq. 5: x_hat_tau_{s-1} from x_tau_S:tau_s, for every s that `x` reaches at once (Section 3.3, training)."""
    network, config, (B, S) = student.network, student.config, x.shape[:2]
    step = torch.arange(S, device=x.device).repeat(B)  # A row is one state of one image.
    image = torch.arange(B, device=x.device).repeat_interleave(S)
    rows, tau = x.flatten(0, 1), student.tau.to(x.dtype)

    def attend(block: int, q: Heads, k: Heads, v: Heads) -> Heads:  # Figure 4a: history in the lowest N blocks only.
        q, k, v = (z.unflatten(0, (B, S)).transpose(1, 2).flatten(2, 3) for z in (q, k, v))  # B head S·P e
        mask = config.mask if block < config.history_blocks else HistoryMask.DIAGONAL
        gates = student.gates[block, :S] if block < student.gated_blocks else None
        read = attention(q, k, mask=mask, S=S, gates=gates) @ v
        return read.unflatten(2, (S, -1)).transpose(1, 2).flatten(0, 1)

    # Figure 3a: patches and positions are shared; its time, by adaLN and by an embedding, marks each token's origin.
    tokens = network.embed(rows) + student.step_embedding[step].unsqueeze(1)
    conditioning = network.condition(student.diffusion.network_time(tau[step]), c[image])
    tokens, vector = network.run_blocks(tokens, conditioning, attend), vector_of(conditioning)
    heads = list(student.step_heads) or [network.final_layer] * S  # One for all steps, or one per step.
    patches = torch.stack([heads[i](tokens[i::S], vector[i::S]) for i in range(S)], dim=1).flatten(0, 1)
    return student.next_state(rows, network.unpatchify(patches), tau[step], tau[step + 1]).unflatten(0, (B, S))


def L_ARD(student: Student, mu: Trajectory, c: Condition) -> Float[Tensor, ""]:
    """Eq. 6: the teacher's states in, its next states as targets; the mean where the paper has the sum."""
    return (G_theta(student, mu[:, :-1], c) - mu[:, 1:]).square().mean()


@torch.no_grad()
def sample(student: Student, x: States, c: Condition) -> Trajectory:
    """Section 3.3: from x = [x_tau_S], the noise, each state from the student's own; Figure 6b starts with more."""
    while x.shape[1] <= student.config.num_steps:
        x = torch.cat([x, G_theta(student, x, c)[:, -1:]], dim=1)
    return x


def _softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num()  # Who may read nothing reads zero.
