"""The library against the method on one page: what is computed quickly is what the page says, in float64."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ard.diffusion.process import DiffusionKind
from ard.methods.losses import regression_loss
from ard.student import reference
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import sample
from ard.student.student import Prediction, StateKind, Student

MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]

LABEL = torch.tensor([4, 1])
HISTORIES: dict[str, list[Any]] = {
    "mask": list(HistoryMask),
    "history": list(HistoryAttention),
    "num_steps": [1, 2, 3, 5],
    "history_blocks": [0, 1, 3],
}
OUTPUTS: dict[str, list[Any]] = {
    "prediction": list(Prediction),
    "state": list(StateKind),
    "kind": list(DiffusionKind),
    "per_step_heads": [False, True],
}
FIGURE_3B = {  # Rows are queries, columns keys, in generation order; copied from the figure by hand.
    HistoryMask.DIAGONAL: ["x...", ".x..", "..x.", "...x"],
    HistoryMask.WINDOW: ["x...", "xx..", ".xx.", "..xx"],
    HistoryMask.ANCHOR: ["x...", "xx..", "x.x.", "x..x"],
    HistoryMask.CAUSAL: ["x...", "xx..", "xxx.", "xxxx"],
}


def combinations() -> list[dict[str, Any]]:
    """Every combination of what concerns the history, each with one of those that concern the output."""
    outputs = list(itertools.product(*OUTPUTS.values()))
    return [
        dict(zip([*HISTORIES, *OUTPUTS], [*history, *outputs[7 * number % len(outputs)]], strict=True))
        for number, history in enumerate(itertools.product(*HISTORIES.values()))
    ]


def assert_equal(ours: Tensor, page: Tensor, about: object) -> None:
    """Equal to 1e-12 of the values' size, which a VP solver step makes large."""
    assert ours.shape == page.shape
    error = (ours - page).detach().abs().max() / page.detach().abs().max().clamp(min=1)
    assert error <= 1e-12, (float(error), about)


def test_every_choice_meets_every_other() -> None:
    choices = {**HISTORIES, **OUTPUTS}
    for names in [tuple(HISTORIES), tuple(OUTPUTS), *itertools.combinations(choices, 2)]:
        met = {tuple(one[name] for name in names) for one in combinations()}
        assert met == set(itertools.product(*(choices[name] for name in names))), names


@pytest.mark.parametrize("mask", HistoryMask)
def test_the_masks_are_figure_3bs(mask: HistoryMask) -> None:
    wanted = torch.tensor([[cell == "x" for cell in row] for row in FIGURE_3B[mask]])
    assert torch.equal(reference.block_mask(mask, S=4), wanted)
    tokens = reference.block_mask(mask, S=4, P=3).view(4, 3, 4, 3)
    assert torch.equal(tokens, wanted.view(4, 1, 4, 1).expand(4, 3, 4, 3)), "all tokens of a step have the same rights"


def test_a_query_without_a_preference_reads_all_that_it_may_alike() -> None:
    """Two heads, three steps of two tokens; the noise of the anchor mask is the history of steps 1 and 2."""
    q, k = torch.ones(2, 1, 2, 6, 4, dtype=torch.float64)
    gates = torch.tensor([[9.0, 9.0], [0.5, -2.0], [0.0, 1.0]], dtype=torch.float64)
    shared = reference.attention(q, k, mask=HistoryMask.ANCHOR, S=3)[0, 0, ::2]
    gated = reference.attention(q, k, mask=HistoryMask.ANCHOR, S=3, gates=gates)[0, :, ::2]
    assert shared.tolist() == [[0.5, 0.5, 0, 0, 0, 0], [0.25] * 4 + [0, 0], [0.25, 0.25, 0, 0, 0.25, 0.25]]
    assert gated[0].tolist() == [[0.5, 0.5, 0, 0, 0, 0], [0.25, 0.25, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]
    assert gated[1].tolist() == [[0.5, 0.5, 0, 0, 0, 0], [-1, -1, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0.5, 0.5]]


@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_the_student_and_its_cached_sampling_are_what_the_page_says(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    for one in (one for one in combinations() if (one["mask"], one["history"]) == (mask, history)):
        student, states = make_student(**one), make_latents(2, one["num_steps"])
        with torch.no_grad():
            assert_equal(student(states, LABEL), reference.G_theta(student, states, LABEL), one)
            drawn = sample(student, states[:, 0], condition=LABEL)
            assert_equal(drawn, reference.sample(student, states[:, :1], LABEL), one)


@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_the_loss_and_its_gradients_are_those_of_the_page(
    mask: HistoryMask, history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    for blocks, per_step_heads in itertools.product((1, 3), (False, True)):
        student = make_student(
            num_steps=3, mask=mask, history=history, history_blocks=blocks, per_step_heads=per_step_heads
        )
        mu, weights = make_latents(2, 4), dict(student.named_parameters())
        losses = (regression_loss(student(mu[:, :-1], LABEL), mu[:, 1:]).mean(), reference.L_ARD(student, mu, LABEL))
        assert_equal(losses[0], losses[1], blocks)
        ours, page = (torch.autograd.grad(loss, [*weights.values()], allow_unused=True) for loss in losses)
        for name, one, other in zip(weights, ours, page, strict=True):
            assert (one is None) == (other is None), name
            if one is not None and other is not None:
                assert_equal(one, other, name)


def test_it_is_one_page() -> None:
    assert len(Path(reference.__file__).read_text().splitlines()) <= 100
