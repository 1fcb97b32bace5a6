"""Few-step sampling: the student predicts state after state, reading its own history from a KV cache."""

import torch

from ard.models.student import Student
from ard.types import Labels, Latents, States, Trajectory


@torch.no_grad()
def sample(student: Student, noise: Latents, *, label: Labels) -> Trajectory:
    """The student's own trajectory from `noise`, S + 1 states; the image is the last one."""
    return continue_trajectory(student, noise.unsqueeze(1), label=label)


@torch.no_grad()
def continue_trajectory(student: Student, given: States, *, label: Labels) -> Trajectory:
    """The first states as given, by the teacher for example, continued to S + 1 states by the student."""
    cache = student.make_cache(given[:, 0])
    trajectory = list(given.unbind(dim=1))
    for step in range(student.config.num_steps):
        x_hat = student(trajectory[step].unsqueeze(1), label, step=step, cache=cache).squeeze(1)
        if step + 1 == len(trajectory):
            trajectory.append(x_hat)
    return torch.stack(trajectory, dim=1)
