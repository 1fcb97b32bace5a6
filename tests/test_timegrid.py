"""The student's grid on the teacher's."""

import pytest

from ard.core.errors import InputError
from ard.diffusion.timegrid import check_indices, rescaled_indices, uniform_indices


@pytest.mark.parametrize(
    ("num_teacher_steps", "num_steps", "indices"),
    [
        (25, 5, (0, 5, 10, 15, 20, 25)),
        (24, 4, (0, 6, 12, 18, 24)),
        (25, 4, (0, 6, 13, 19, 25)),
        (24, 5, (0, 5, 10, 14, 19, 24)),
        (7, 1, (0, 7)),
        (3, 3, (0, 1, 2, 3)),
    ],
)
def test_uniform_points_are_evenly_spread_from_the_noise_to_the_image(
    num_teacher_steps: int, num_steps: int, indices: tuple[int, ...]
) -> None:
    assert uniform_indices(num_teacher_steps, num_steps) == indices
    assert check_indices(indices, num_teacher_steps) == indices


def test_more_steps_than_the_teachers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^8 student steps are more than the teacher's 4; allowed: 1 to 4"):
        uniform_indices(4, 8)


@pytest.mark.parametrize(
    ("indices", "num_teacher_steps", "wanted"),
    [
        ((0, 16, 32, 48), 24, (0, 8, 16, 24)),
        ((0, 10, 15, 20, 25), 24, (0, 10, 14, 19, 24)),
        ((0, 10, 15, 20, 25), 50, (0, 20, 30, 40, 50)),
        ((0, 23, 24, 25), 3, (0, 1, 2, 3)),
        ((0, 1, 2, 25), 4, (0, 1, 2, 4)),
        ((0, 25), 7, (0, 7)),
    ],
)
def test_a_grid_is_carried_over_to_another_number_of_steps(
    indices: tuple[int, ...], num_teacher_steps: int, wanted: tuple[int, ...]
) -> None:
    assert rescaled_indices(indices, num_teacher_steps) == wanted
    assert check_indices(wanted, num_teacher_steps) == wanted


@pytest.mark.parametrize("num_steps", [0, -1])
def test_less_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(InputError, match=rf"num_steps is {num_steps}"):
        uniform_indices(24, num_steps)


def test_a_grid_of_ones_own_need_not_be_uniform() -> None:
    assert check_indices((0, 1, 20, 24), 24) == (0, 1, 20, 24)


@pytest.mark.parametrize(
    "indices", [(), (0,), (0, 12), (1, 24), (0, 12, 12, 24), (0, 16, 8, 24), (0, 24, 25), (-1, 0, 24)]
)
def test_a_grid_that_does_not_rise_from_noise_to_image_is_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"^grid {','.join(map(str, indices))} must rise .* 24 "):
        check_indices(indices, 24)
