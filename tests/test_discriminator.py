"""The discriminator's heads, the adversarial losses and the adaptive weight, against arithmetic done by hand."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ard.core.errors import InputError
from ard.diffusion.process import Diffusion, DiffusionKind
from ard.methods.adversarial import judging_times
from ard.methods.losses import (
    AdversarialForm,
    adversarial_weight,
    approximate_gradient_penalty,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from ard.networks.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    HeadNorm,
    LocalBatchNorm,
    TokenMixing,
    new_discriminator,
    teacher_features,
)
from ard.networks.transformer import Transformer
from ard.presets import DISCRIMINATORS

Make = Callable[..., Transformer]
AUTHORS = DISCRIMINATORS["authors"].heads
DOUBLE = torch.float64


def judged(
    network: Transformer, config: DiscriminatorConfig, x: Tensor, *, training: bool = False
) -> tuple[Discriminator, Tensor]:
    """Fresh heads and their logits at `x`, each latent at a time and with a label of its own."""
    heads = new_discriminator(config, network.config, seed=0).double().train(training)
    t, label = torch.linspace(0, 900, len(x), dtype=DOUBLE), torch.arange(len(x)) % 5
    features, condition = teacher_features(network, x, t, label, blocks=heads.blocks)
    return heads, heads(features, condition)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_a_presets_logits_are_per_latent_head_and_token_at_any_batch_size(
    make_network: Make, make_latents: Callable[..., Tensor], name: str, batch: int
) -> None:
    network = make_network(patch_size=2)
    heads, logits = judged(network, DISCRIMINATORS[name].heads, make_latents(batch), training=True)
    assert logits.shape == (batch, len(heads.blocks), 16)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_the_authors_have_a_head_after_every_block_and_ours_at_five_depths() -> None:
    assert AUTHORS.blocks(28) == tuple(range(28))
    assert DiscriminatorConfig().blocks(28) == (2, 7, 13, 20, 27)
    assert DiscriminatorConfig().blocks(4) == (0, 1, 2, 3), "two of the five fall on one block"
    assert DiscriminatorConfig().blocks(1) == (0,)


def test_a_head_of_the_authors_has_thirteen_million_parameters_at_dit_xls_width(make_network: Make) -> None:
    config = make_network(width=1152, depth=1, num_heads=16, mlp_ratio=0.01).config
    count = sum(parameter.numel() for parameter in new_discriminator(AUTHORS, config, seed=0).parameters())
    width, width_out = 1152, 64
    weights = width**2 + 9 * width**2 + 2 * width * width_out
    assert count == weights + 2 * width + 2 * width_out + 4 * width == pytest.approx(13.43e6, rel=1e-3)


@pytest.mark.parametrize("mixing", TokenMixing)
@pytest.mark.parametrize("patch", [8, 4, 2, 1])
def test_the_heads_take_any_number_of_tokens(
    make_network: Make, make_latents: Callable[..., Tensor], mixing: TokenMixing, patch: int
) -> None:
    _, logits = judged(make_network(patch_size=patch), DiscriminatorConfig(head_mixing=mixing), make_latents(2))
    assert logits.shape[2] == (8 // patch) ** 2
    assert logits.std() > 0, "also with a single token"


@pytest.mark.parametrize("norm", [HeadNorm.GROUP, HeadNorm.NONE])
def test_our_logits_of_a_latent_do_not_depend_on_its_batch(
    make_network: Make, make_latents: Callable[..., Tensor], norm: HeadNorm
) -> None:
    network, x = make_network(), make_latents(5)
    heads, logits = judged(network, DiscriminatorConfig(head_norm=norm), x)
    features, condition = teacher_features(
        network, x[1:2], torch.tensor([225.0], dtype=DOUBLE), torch.tensor([1]), blocks=heads.blocks
    )
    torch.testing.assert_close(heads(features, condition), logits[1:2], rtol=1e-9, atol=1e-10)


def test_the_local_batch_norm_is_that_of_groups_of_eight() -> None:
    norm = LocalBatchNorm(3).double()
    x = torch.randn(16, 3, 5, dtype=DOUBLE)
    wanted = torch.cat([torch.nn.functional.batch_norm(half, None, None, training=True) for half in x.chunk(2)])
    torch.testing.assert_close(norm(x), wanted)
    assert norm(x[:9]).isfinite().all(), "the authors' groups need a divisor"


def test_the_heads_start_from_their_seed_and_leave_the_global_generator_alone(make_network: Make) -> None:
    config = make_network().config
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (new_discriminator(DiscriminatorConfig(), config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    values = [torch.cat([p.flatten() for p in heads.state_dict().values()]) for heads in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_the_features_are_the_blocks_outputs_and_the_last_ones_make_the_prediction(
    make_network: Make, make_latents: Callable[..., Tensor]
) -> None:
    network, x = make_network(), make_latents(2)
    t, label = torch.tensor([100.0, 700.0], dtype=DOUBLE), torch.tensor([0, 3])
    features, condition = teacher_features(network, x, t, label, blocks=(0, 2))
    assert len(features) == 2
    torch.testing.assert_close(network.unpatchify(network.final_layer(features[1], condition)), network(x, t, label))


def test_the_gradient_flows_through_the_frozen_teacher_and_not_into_it(
    make_network: Make, make_latents: Callable[..., Tensor]
) -> None:
    network, x = make_network().requires_grad_(False), make_latents(2).requires_grad_()
    _, logits = judged(network, DiscriminatorConfig(), x)
    logits.mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_hinge_and_the_relativistic_loss_are_their_formulas() -> None:
    real, fake = torch.tensor([[[2.0, 0.5]]]), torch.tensor([[[-3.0, 0.5]]])
    hinge, pairs = AdversarialForm.HINGE, AdversarialForm.RELATIVISTIC
    assert float(discriminator_loss(real, fake, form=hinge)) == pytest.approx((0 + 0.5) / 2 + (0 + 1.5) / 2)
    assert float(generator_loss(real, fake, form=hinge)) == pytest.approx(1.25)
    gaps = softplus(torch.tensor([-5.0, 0.0])).mean()
    assert float(discriminator_loss(real, fake, form=pairs)) == pytest.approx(float(gaps))
    assert float(generator_loss(real, fake, form=pairs)) == pytest.approx(
        float(softplus(torch.tensor([5.0, 0])).mean())
    )


@pytest.mark.parametrize("cap", [1e4, 0.5])
def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer(cap: float) -> None:
    weight = torch.tensor([[1.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    output = (torch.tensor([[3.0, -1.0]], dtype=DOUBLE) * weight).sum()  # Its gradient is (3, -1).
    regression, generator = output.square(), -5 * output
    at = adversarial_weight(regression, generator, weight, cap=cap)
    wanted = 2 * (3 - 2) * math.sqrt(10) / (5 * math.sqrt(10) + 1e-4)
    assert float(at) == pytest.approx(min(wanted, cap))
    assert not at.requires_grad
    assert weight.grad is None


def test_the_adaptive_weight_makes_both_gradients_equally_long() -> None:
    weight = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(3, dtype=DOUBLE)
    regression, generator = (weight @ x).square().sum(), 1e3 * (weight @ x).exp().sum()
    at = adversarial_weight(regression, generator, weight, cap=1e4)
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (regression, at * generator)]
    assert float(norms[0] / norms[1]) == pytest.approx(1, rel=1e-4)


def linear_heads(slope: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
    """Heads whose logit of a token is its product with `slope`."""
    return lambda features: torch.stack([tokens @ slope for tokens in features], dim=1)


def test_the_penalty_of_linear_heads_is_in_closed_form() -> None:
    slope, tokens = torch.tensor([3.0, 4.0], dtype=DOUBLE), 7
    features = [scale * torch.ones(2, tokens, 2, dtype=DOUBLE) for scale in (1.0, 10.0)]
    # D is the mean over P tokens, so its slope per token is slope / P, and its squared norm |slope|^2 / P.
    wanted = 25 / tokens * (1**2 + 10**2) / 2
    assert float(gradient_penalty(linear_heads(slope), features)) == pytest.approx(wanted)


def test_the_approximate_penalty_has_the_exact_ones_mean_without_second_derivatives() -> None:
    slope = torch.tensor([3.0, 4.0], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)
    features = [torch.ones(20_000, 5, 2, dtype=DOUBLE)]
    noises = [torch.randn(features[0].shape, generator=generator, dtype=DOUBLE)]
    exact = gradient_penalty(linear_heads(slope), features)
    approximate = approximate_gradient_penalty(linear_heads(slope), features, noises=noises)
    assert float(approximate) == pytest.approx(float(exact), rel=0.05)


def test_the_penalty_reaches_the_heads_weights(make_network: Make, make_latents: Callable[..., Tensor]) -> None:
    network = make_network()
    heads, _ = judged(network, DiscriminatorConfig(), make_latents(2))
    features, condition = teacher_features(
        network, make_latents(2), torch.zeros(2, dtype=DOUBLE), torch.tensor([0, 1]), blocks=heads.blocks
    )
    gradient_penalty(lambda given: heads(given, condition), features).backward()
    assert all(parameter.grad is not None for name, parameter in heads.named_parameters() if "mix" in name)


@pytest.mark.parametrize("kind", DiffusionKind)
def test_half_of_the_judged_samples_are_clean_and_the_others_have_times_of_the_process(kind: DiffusionKind) -> None:
    diffusion = Diffusion(kind=kind)
    t = judging_times(diffusion, 4000, 0.5, torch.Generator().manual_seed(0)) / diffusion.max_time
    assert float((t == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    again = t[t > 0]
    assert float(again.logit().clamp(-9, 9).mean()) == pytest.approx(-0.6, abs=0.1)
    assert float(again.max()) <= 1
    assert not judging_times(diffusion, 50, 0.0, torch.Generator()).any()


def test_a_depth_outside_of_the_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"head_depths has 1\.5"):
        DiscriminatorConfig(head_depths=(0.5, 1.5))
