"""The training recipe of a teacher that no preset was tuned for: fitted between the embedded data's and the paper's.

Two recipes are known to be good: the embedded data's for a width of 64 (tuned, docs/log.md) and the paper's for 1152
(its authors' code). Between them the learning rate falls as a power of the width, as it does under muP (Yang et al.,
2022) and in the tables of practice. The number of updates is that of 16 passes over the trajectories.
"""

import math
from dataclasses import dataclass, replace

from ard.diffusion.process import Diffusion
from ard.networks.transformer import TransformerConfig
from ard.presets.digits import ON_X_0_HAT, further
from ard.presets.preset import Preset
from ard.training.loop import TrainConfig

SMALL, LARGE = 64, 1152  # The widths of the embedded data's teacher and of DiT-XL.
LARGE_RATE = 1e-4
PASSES = 16  # Over the trajectories.
FEWEST, MOST = 1500, 300_000  # Updates.
WIDE = 384  # From this width on a batch is the paper's 64, below it is 32.
AVERAGED = 15  # The moving average forgets over a 15th of the updates, and over 10,000 at most.


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained unless options say otherwise, and why so."""

    train: TrainConfig
    why: str
    """In a few words, such as "the preset's, which is for this teacher"."""


def fit_recipe(
    preset: Preset,
    network: TransformerConfig,
    diffusion: Diffusion,
    *,
    num: int,
    iterations: int | None = None,
    batch_size: int | None = None,
) -> Recipe:
    """The recipe for students of a teacher with this network and diffusion that learn from `num` trajectories.

    It is the preset's where that is for this teacher. `iterations` and `batch_size` are those that the user has
    chosen, which the others follow.
    """
    if (network, diffusion.kind) == (preset.teacher.network, preset.teacher.diffusion.kind):
        return Recipe(train=preset.train, why="the preset's, which is for this teacher")
    fewest = min(FEWEST, preset.train.iterations)
    batch_size = batch_size or (64 if network.width >= WIDE else 32)
    updates = iterations or max(fewest, min(MOST, PASSES * num // batch_size))
    train = replace(
        preset.train,
        learning_rate=_rate(preset, network.width),
        batch_size=batch_size,
        iterations=updates,
        ema_decay=1 - max(AVERAGED / max(updates, 2 * AVERAGED), 1e-4),
        checkpoint_every=max(500, min(10_000, updates // 30)),
    )
    if preset.adversarial:
        train = replace(further(train), iterations=iterations or min(train.iterations, preset.train.iterations))
    why = f"fitted to a teacher of width {network.width} and {num} trajectories, see docs/guide.md"
    return Recipe(train=train, why=why)


def tell_recipe(
    preset: Preset, network: TransformerConfig, diffusion: Diffusion, *, num: int, train: TrainConfig
) -> str:
    """One line for the user of a run with `train`: its main numbers, where they come from, and which were given."""
    recipe = fit_recipe(preset, network, diffusion, num=num)
    follows = fit_recipe(
        preset, network, diffusion, num=num, iterations=train.iterations, batch_size=train.batch_size
    ).train
    usual = {
        "iterations": recipe.train.iterations,
        "batch_size": recipe.train.batch_size,
        "learning_rate": follows.learning_rate,
        "ema_decay": follows.ema_decay,
    }
    values = ", ".join(f"{name.replace('_', ' ')} {getattr(train, name):.6g}" for name in usual)
    given = [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(train, name) != value]
    return f"recipe: {values} ({recipe.why}{'; given: ' + ', '.join(given) if given else ''})"


def _rate(preset: Preset, width: int) -> float:
    """The learning rate, to two digits: a power of the width between the two known recipes."""
    own, at = preset.train.learning_rate * (5 if _is_further(preset) else 1), preset.teacher.network.width
    small, large = (own, LARGE_RATE) if at == SMALL else (ON_X_0_HAT.learning_rate, own)
    return fitted_rate(small, large, width=width)


def fitted_rate(small: float, large: float, *, width: int) -> float:
    """A learning rate between those of widths 64 and 1152, as a power of the width, to two digits."""
    part = math.log(min(max(width, SMALL), LARGE) / SMALL) / math.log(LARGE / SMALL)
    return float(f"{small * (large / small) ** part:.2g}")


def _is_further(preset: Preset) -> bool:
    """Whether the preset's own rate is already a fifth of what its student was trained with before."""
    return preset.adversarial and preset.teacher.network.width == SMALL
