"""The student's times tau_S > … > tau_0 = 0, each on the teacher's own grid."""

from itertools import pairwise

from ard.core.errors import InputError, require_at_least


def uniform_indices(num_teacher_steps: int, num_steps: int) -> tuple[int, ...]:
    """The S + 1 points of the teacher's grid nearest to tau_s = T s / S (Section 2.2), as indices, noise first."""
    require_at_least(1, {"num_steps": num_steps})
    if num_steps > num_teacher_steps:
        raise InputError(
            f"{num_steps} student steps are more than the teacher's {num_teacher_steps}; allowed: 1 to "
            f"{num_teacher_steps}"
        )
    return tuple((2 * step * num_teacher_steps + num_steps) // (2 * num_steps) for step in range(num_steps + 1))


def rescaled_indices(indices: tuple[int, ...], num_teacher_steps: int) -> tuple[int, ...]:
    """The points of a grid of `num_teacher_steps` nearest to those of another grid, whose last point is its length."""
    if len(indices) > num_teacher_steps + 1:
        return uniform_indices(num_teacher_steps, len(indices) - 1)  # Says that there are too few.
    last, steps = indices[-1], len(indices) - 1
    nearest = [(2 * index * num_teacher_steps + last) // (2 * last) for index in indices]
    for step in range(1, steps):  # Rounding has no two points in one place.
        nearest[step] = min(max(nearest[step], nearest[step - 1] + 1), num_teacher_steps - steps + step)
    return tuple(nearest)


def check_indices(indices: tuple[int, ...], num_teacher_steps: int) -> tuple[int, ...]:
    """`indices` when they rise strictly from 0 (noise) to `num_teacher_steps` (image); InputError otherwise."""
    rises = all(a < b for a, b in pairwise(indices))
    if len(indices) < 2 or indices[0] != 0 or indices[-1] != num_teacher_steps or not rises:
        given = ",".join(map(str, indices))
        raise InputError(f"grid {given} must rise from 0 (noise) to {num_teacher_steps} (image)")
    return indices
