"""The training recipe of a teacher that no preset was tuned for."""

from dataclasses import replace

import pytest

from ard.diffusion.process import Diffusion, DiffusionKind
from ard.networks.transformer import TransformerConfig, named_config
from ard.presets import DISTILL_PRESETS
from ard.presets.fitted import fit_recipe, fitted_rate, tell_recipe

VP = Diffusion(kind=DiffusionKind.VP)


def network(name: str) -> TransformerConfig:
    return named_config(name, latent_size=16, channels=4, num_classes=5)


@pytest.mark.parametrize("name", DISTILL_PRESETS)
def test_a_presets_own_teacher_has_the_presets_recipe(name: str) -> None:
    preset = DISTILL_PRESETS[name]
    recipe = fit_recipe(preset, preset.teacher.network, preset.teacher.diffusion, num=10)
    assert recipe.train == preset.train
    assert "which is for this teacher" in recipe.why


@pytest.mark.parametrize("name", DISTILL_PRESETS)
@pytest.mark.parametrize("model", ["tiny/2", "small/2", "DiT-S/2", "DiT-B/4", "DiT-XL/2"])
def test_rates_fall_with_the_width_between_the_two_known_recipes(name: str, model: str) -> None:
    preset = DISTILL_PRESETS[name]
    train = fit_recipe(preset, network(model), VP, num=3000).train
    first = DISTILL_PRESETS[preset.start].train if preset.start else preset.train
    part = 0.2 if preset.adversarial else 1
    digits = max(first.learning_rate, 3e-3) if preset.teacher.network.width == 1152 else first.learning_rate
    assert 0.9e-4 * part <= train.learning_rate <= 1.01 * digits * part
    assert (train.batch_size == 64) == (network(model).width >= 384)


def test_the_rate_of_both_ends_is_theirs_and_between_them_it_falls() -> None:
    rates = [fitted_rate(1.5e-3, 1e-4, width=width) for width in (32, 64, 128, 384, 768, 1152, 2000)]
    assert (rates[0], rates[1], rates[-2], rates[-1]) == (1.5e-3, 1.5e-3, 1e-4, 1e-4)
    assert rates == sorted(rates, reverse=True)
    assert rates[3] == 2.8e-4


def test_updates_follow_the_trajectories_and_the_average_the_updates() -> None:
    preset, teacher = DISTILL_PRESETS["ard"], network("DiT-S/2")
    few, many, most = (fit_recipe(preset, teacher, VP, num=num).train for num in (100, 100_000, 10**8))
    assert [one.iterations for one in (few, many, most)] == [1500, 25_000, 300_000]
    assert [one.ema_decay for one in (few, many, most)] == pytest.approx([0.99, 0.9994, 0.9999])
    given = fit_recipe(preset, teacher, VP, num=100, iterations=6000, batch_size=8).train
    assert (given.iterations, given.batch_size, given.ema_decay) == (6000, 8, pytest.approx(0.9975))


def test_what_a_run_says_names_the_recipe_and_what_was_given() -> None:
    preset, teacher = DISTILL_PRESETS["kd"], network("small/2")
    train = fit_recipe(preset, teacher, VP, num=3000, iterations=700).train
    line = tell_recipe(preset, teacher, VP, num=3000, train=replace(train, learning_rate=1e-5))
    assert line.startswith(
        "recipe: iterations 700, batch size 32, learning rate 1e-05, ema decay 0.978571 (fitted to a "
    )
    assert line.endswith("; given: --iterations, --learning-rate)")
    assert f"width {teacher.width} and 3000 trajectories" in line
