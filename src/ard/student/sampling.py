"""Few-step sampling: the student predicts state after state, reading its own history from a KV cache."""

import torch

from ard.core.types import Latents, States, Trajectory
from ard.networks.condition import Condition
from ard.student.student import Student


@torch.no_grad()
def sample(student: Student, noise: Latents, *, condition: Condition) -> Trajectory:
    """The student's own trajectory from `noise`, S + 1 states; the image is the last one."""
    return continue_trajectory(student, noise.unsqueeze(1), condition=condition)


@torch.no_grad()
def continue_trajectory(student: Student, given: States, *, condition: Condition) -> Trajectory:
    """The first states as given, by the teacher for example, continued to S + 1 states by the student."""
    cache = student.make_cache(given[:, 0])
    trajectory = list(given.unbind(dim=1))
    for step in range(student.config.num_steps):
        x_hat = student(trajectory[step].unsqueeze(1), condition, step=step, cache=cache).squeeze(1)
        if step + 1 == len(trajectory):
            trajectory.append(x_hat)
    return torch.stack(trajectory, dim=1)
