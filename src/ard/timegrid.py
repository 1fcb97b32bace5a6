"""The student's times tau_S > … > tau_0 = 0, each on the teacher's own grid."""

from itertools import pairwise

from ard.errors import InputError, require_at_least


def uniform_indices(num_teacher_steps: int, num_steps: int) -> tuple[int, ...]:
    """S + 1 evenly spaced points of the teacher's grid: tau_s = T s / S (Section 2.2), as indices, noise first."""
    require_at_least(1, {"num_steps": num_steps})
    if num_teacher_steps % num_steps:
        raise InputError(
            f"{num_steps} student steps do not divide the teacher's {num_teacher_steps} steps; choose a divisor, or "
            f"give the points yourself with --grid, from 0 to {num_teacher_steps}"
        )
    return tuple(range(0, num_teacher_steps + 1, num_teacher_steps // num_steps))


def check_indices(indices: tuple[int, ...], num_teacher_steps: int) -> tuple[int, ...]:
    """`indices` when they rise strictly from 0 (noise) to `num_teacher_steps` (image); InputError otherwise."""
    rises = all(a < b for a, b in pairwise(indices))
    if len(indices) < 2 or indices[0] != 0 or indices[-1] != num_teacher_steps or not rises:
        given = ",".join(map(str, indices))
        raise InputError(f"grid {given} must rise from 0 (noise) to {num_teacher_steps} (image)")
    return indices
