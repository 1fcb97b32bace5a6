"""Whole runs as typed values, named after what they reproduce. Every option can be changed on the command line."""

from dataclasses import dataclass, replace

from ard.history import HistoryAttention, HistoryMask
from ard.losses import AdversarialForm
from ard.models.discriminator import DiscriminatorConfig, HeadNorm, TokenMixing
from ard.models.student import Prediction, StateKind, StudentConfig
from ard.training.adversarial import AdversarialConfig, Penalty
from ard.training.distill import DistillConfig
from ard.training.loop import TrainConfig
from ard.trajectories.online import OnlineConfig

NUM_TEACHER_STEPS = 24  # Divisible by 1, 2, 3, 4, 6, 8 and 12 student steps.
FROM_STORE = -1  # num_steps: as many as the store was collected for.
ONLINE = OnlineConfig(num_teacher_steps=NUM_TEACHER_STEPS)


@dataclass(frozen=True, kw_only=True)
class DistillPreset:
    """A student and how it is trained."""

    student: StudentConfig
    train: TrainConfig
    distill: DistillConfig
    adversarial: bool = False
    """Whether the loss is R + D."""
    discriminator: str = "heads"
    """A row of DISCRIMINATORS."""


def without_history(student: StudentConfig) -> StudentConfig:
    """The same student reading itself only (M1): step distillation."""
    return replace(student, mask=HistoryMask.DIAGONAL, history_blocks=0)


# For the embedded data; the learning rates were tuned on separate trajectories (docs/log.md).
ON_X_T = TrainConfig(iterations=1500, learning_rate=1.5e-3)
IN_ONE_STEP = TrainConfig(iterations=900, learning_rate=1.5e-3)
ON_NEXT_X_T = TrainConfig(iterations=1500, learning_rate=1.2e-2)  # The next state has to be learned from nothing.
ON_X_0_HAT = TrainConfig(iterations=900, learning_rate=3e-3)


def further(train: TrainConfig) -> TrainConfig:
    """How a student is trained further that has been trained with `train`: shorter, at a fifth of the rate."""
    return replace(train, iterations=600, learning_rate=train.learning_rate / 5, warmup=0)


def _preset(student: StudentConfig, train: TrainConfig) -> DistillPreset:
    return DistillPreset(student=student, train=train, distill=DistillConfig())


OURS = StudentConfig(num_steps=FROM_STORE)
PAPER = replace(OURS, prediction=Prediction.NEXT_STATE, history=HistoryAttention.SHARED)
X_0_HAT = replace(PAPER, state=StateKind.X_0_HAT)
ONE_STEP = replace(without_history(OURS), num_steps=1)

DISCRIMINATORS: dict[str, AdversarialConfig] = {
    # Ours: five heads, each latent judged by itself.
    "heads": AdversarialConfig(),
    # As the authors' re-implementation has it: every block, local batch norm, no penalty, clean inputs. Its warm-up of
    # 3,000 updates and its weight of 10 are for ImageNet.
    "authors": AdversarialConfig(
        heads=DiscriminatorConfig(head_depths=(), head_norm=HeadNorm.LOCAL_BATCH, head_mixing=TokenMixing.RASTER),
        penalty=Penalty.NONE,
        renoised=0.0,
        adversarial_weight=10.0,
        adversarial_cap=1e4,
        adversarial_warmup=3000,
    ),
    # R3GAN's loss (Huang et al., 2024) on the heads.
    "r3": AdversarialConfig(adversarial_form=AdversarialForm.RELATIVISTIC, penalty=Penalty.R1_R2),
}

DISTILL_PRESETS: dict[str, DistillPreset] = {
    # Ours: solver steps on x_t; ARD with the causal mask (M4) and gated history in all blocks.
    "ard": _preset(OURS, ON_X_T),
    "step": _preset(without_history(OURS), ON_X_T),
    "kd": _preset(ONE_STEP, IN_ONE_STEP),
    # The paper's equations read literally: x_t, next state, one shared softmax.
    "ard-paper": _preset(PAPER, ON_NEXT_X_T),
    "step-paper": _preset(without_history(PAPER), ON_NEXT_X_T),
    "kd-paper": _preset(replace(ONE_STEP, prediction=Prediction.NEXT_STATE), IN_ONE_STEP),
    # As the authors re-implemented it: x_0_hat, next state.
    "ard-x0": _preset(X_0_HAT, ON_X_0_HAT),
    "step-x0": _preset(without_history(X_0_HAT), ON_X_0_HAT),
    # The adversarial stage (R + D), for a student that --resume-from names.
    "ard-gan": replace(_preset(OURS, further(ON_X_T)), adversarial=True),
    "step-gan": replace(_preset(without_history(OURS), further(ON_X_T)), adversarial=True),
}


def teacher_training() -> TrainConfig:
    """How the tiny teacher of the embedded data is trained."""
    return TrainConfig(iterations=1300, batch_size=64, learning_rate=2e-3, ema_decay=0.995)
