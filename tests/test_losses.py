"""The regression loss against arithmetic done by hand."""

import numpy as np
import torch

from ard.methods.losses import regression_loss, step_errors


def hand_made() -> tuple[torch.Tensor, torch.Tensor]:
    """Two trajectories of two steps with latents of 1 x 1 x 2."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]).view(2, 2, 1, 1, 2)
    x_hat = torch.tensor([[[1.0, 4.0], [0.0, 4.0]], [[0.0, 0.0], [1.0, -1.0]]]).view(2, 2, 1, 1, 2)
    return x_hat, x


def test_step_errors_are_mean_squares_per_trajectory_and_step() -> None:
    assert step_errors(*hand_made()).tolist() == [[2.0, 4.5], [0.0, 1.0]]


def test_the_regression_loss_is_their_mean_over_the_steps() -> None:
    assert regression_loss(*hand_made()).tolist() == [3.25, 0.5]


def test_the_loss_of_random_states_equals_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    x_hat, x = (torch.randn(3, 4, 2, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = ((x_hat.numpy() - x.numpy()) ** 2).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(regression_loss(x_hat, x), wanted, rtol=1e-12)


def test_the_loss_is_zero_at_the_target_only() -> None:
    _, x = hand_made()
    assert regression_loss(x, x).tolist() == [0, 0]
    assert (regression_loss(x + 1e-3, x) > 0).all()


def test_the_gradient_is_twice_the_difference_over_the_number_of_values() -> None:
    x_hat, x = hand_made()
    x_hat.requires_grad_()
    regression_loss(x_hat, x).sum().backward()
    assert x_hat.grad is not None
    torch.testing.assert_close(x_hat.grad, 2 * (x_hat.detach() - x) / 4)
