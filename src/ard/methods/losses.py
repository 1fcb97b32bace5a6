"""The losses: regression (R) of step distillation and ARD, and the discriminator's and generator's (D, Section 3.3)."""

from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

from ard.core.distributed import mean_over_ranks
from ard.core.types import Logits, States, Tokens


class AdversarialForm(StrEnum):
    """How real and fake logits are compared."""

    HINGE = "hinge"  # The authors', as in StyleGAN-T and LADD.
    RELATIVISTIC = "relativistic"  # In pairs of a real and a fake one: R3GAN (Huang et al., 2024).


def step_errors(x_hat: States, x: States) -> Float[Tensor, "batch step"]:
    """Mean squared distance to the teacher's state, per trajectory and step."""
    return (x_hat - x).square().flatten(2).mean(dim=2)


def regression_loss(x_hat: States, x: States) -> Float[Tensor, " batch"]:
    """Mean squared distance to the teacher's states, averaged over the steps (Eq. 6; without history, Eq. 4)."""
    return step_errors(x_hat, x).mean(dim=1)


def discriminator_loss(real: Logits, fake: Logits, *, form: AdversarialForm) -> Float[Tensor, ""]:
    """What the discriminator minimises: mean of [1 - real]+ + [1 + fake]+, or of softplus(fake - real)."""
    match form:
        case AdversarialForm.HINGE:
            return relu(1 - real).mean() + relu(1 + fake).mean()
        case AdversarialForm.RELATIVISTIC:
            return softplus(fake - real).mean()


def generator_loss(real: Logits, fake: Logits, *, form: AdversarialForm) -> Float[Tensor, ""]:
    """What the student minimises besides the regression: mean of -fake, or of softplus(real - fake)."""
    match form:
        case AdversarialForm.HINGE:
            return -fake.mean()
        case AdversarialForm.RELATIVISTIC:
            return softplus(real - fake).mean()


def adversarial_weight(
    regression: Float[Tensor, ""], generator: Float[Tensor, ""], weight: Tensor, *, cap: float
) -> Float[Tensor, ""]:
    """|d regression / d weight| / (|d generator / d weight| + 1e-4), at most `cap`: VQGAN (Esser et al., 2021).

    `weight` is the last output layer's, where both gradients then have the same norm. Over several ranks the gradients
    are those of the whole batch, their means, so that all ranks minimise the same sum. Both graphs are kept.
    """
    slopes = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (regression, generator)]
    norms = [mean_over_ranks(slope).norm() for slope in slopes]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=cap).detach()


def gradient_penalty(logits_of: Callable[[Sequence[Tokens]], Logits], features: Sequence[Tokens]) -> Float[Tensor, ""]:
    """R1 on the input of each head (Mescheder et al., 2018; Sauer et al., 2023), averaged over latents and heads.

    Per latent and head: |d D / d f|^2 mean(f^2), where D is the mean logit over the tokens and f the head's input.
    The factor measures f in units of its own size, which differs between the teacher's blocks.
    """
    leaves = [tokens.detach().requires_grad_() for tokens in features]
    total = logits_of(leaves).mean(dim=2).sum()
    slopes = torch.autograd.grad(total, leaves, create_graph=True)
    pairs = zip(slopes, features, strict=True)
    return torch.stack([slope.square().sum((1, 2)) * _mean_square(f) for slope, f in pairs]).mean()


def approximate_gradient_penalty(
    logits_of: Callable[[Sequence[Tokens]], Logits],
    features: Sequence[Tokens],
    *,
    noises: Sequence[Tokens],
    scale: float = 0.1,
) -> Float[Tensor, ""]:
    """The same without a second derivative: |D(f + s f_rms noise) - D(f)|^2 / s^2 (aR1, Lin et al., 2025).

    Its mean over standard normal `noises` is `gradient_penalty` for small scales s.
    """
    moved = [
        f + scale * _mean_square(f).sqrt().view(-1, 1, 1) * noise for f, noise in zip(features, noises, strict=True)
    ]
    change = (logits_of(moved) - logits_of(features)).mean(dim=2)
    return (change / scale).square().mean()


def _mean_square(features: Tokens) -> Float[Tensor, " row"]:
    return features.detach().square().mean((1, 2))
