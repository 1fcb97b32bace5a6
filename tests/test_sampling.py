"""Sampling: the student's own roll-out, continuing a given beginning, and independence of the batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ard.diffusion.process import DiffusionKind
from ard.student import reference
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.sampling import continue_trajectory, sample
from ard.student.student import Prediction, Student

MakeStudent = Callable[..., Student]
MakeLatents = Callable[..., Tensor]

LABEL = torch.tensor([4, 1])


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_trajectory_starts_with_its_noise_and_has_one_state_per_step(
    num_steps: int, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    trajectory = sample(make_student(num_steps=num_steps), make_latents(2), condition=LABEL)
    assert trajectory.shape == (2, num_steps + 1, 2, 8, 8)
    assert torch.equal(trajectory[:, 0], make_latents(2))
    assert not trajectory.requires_grad


@pytest.mark.parametrize("known", [1, 2, 3, 4])
@pytest.mark.parametrize("history", HistoryAttention)
@pytest.mark.parametrize("mask", HistoryMask)
def test_a_given_beginning_is_kept_and_continued_as_the_student_would_with_that_history(
    known: int, history: HistoryAttention, mask: HistoryMask, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, given = make_student(num_steps=4, mask=mask, history=history), make_latents(2, known)
    trajectory = continue_trajectory(student, given, condition=LABEL)
    assert torch.equal(trajectory[:, :known], given)
    assert not trajectory.requires_grad
    torch.testing.assert_close(trajectory, reference.sample(student, given, LABEL), rtol=1e-10, atol=1e-10)


def test_the_given_history_matters_beyond_its_last_state(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    given = make_latents(2, 3)
    other = torch.cat([make_latents(2, 2, seed=1), given[:, 2:]], dim=1)
    moved = {
        mask: continue_trajectory(student, given, condition=LABEL)[:, 3:]
        - continue_trajectory(student, other, condition=LABEL)[:, 3:]
        for mask in HistoryMask
        for student in [make_student(num_steps=4, mask=mask)]
    }
    assert moved.pop(HistoryMask.DIAGONAL).count_nonzero() == 0
    assert all(change.abs().max() > 1e-3 for change in moved.values())


def test_a_whole_trajectory_is_returned_as_it_was_given(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    given = make_latents(2, 4)
    assert torch.equal(continue_trajectory(make_student(num_steps=3), given, condition=LABEL), given)


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("kind", DiffusionKind)
def test_a_sample_does_not_depend_on_its_batch(
    kind: DiffusionKind, prediction: Prediction, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, noise = make_student(kind, num_steps=3, prediction=prediction).float(), make_latents(7).float()
    label = torch.arange(7) % 5
    alone = torch.cat([sample(student, noise[i : i + 1], condition=label[i : i + 1]) for i in range(7)])
    together = sample(student, noise, condition=label)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


def test_the_label_matters(make_student: MakeStudent, make_latents: MakeLatents) -> None:
    student, noise = make_student(num_steps=2), make_latents(2)
    same, other = sample(student, noise, condition=LABEL), sample(student, noise, condition=LABEL.flip(0))
    assert (same[:, -1] - other[:, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("history", HistoryAttention)
def test_sampling_under_bf16_autocast_is_sampling_up_to_rounding(
    history: HistoryAttention, make_student: MakeStudent, make_latents: MakeLatents
) -> None:
    student, noise = make_student(num_steps=3, history=history).float(), make_latents(2).float()
    exact = sample(student, noise, condition=LABEL)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sample(student, noise, condition=LABEL)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()
