"""The embedded data's runs, small enough for a laptop: our defaults, the paper's equations, and the authors' code."""

from dataclasses import replace

from ard.diffusion.process import Diffusion
from ard.networks.transformer import named_config
from ard.presets.preset import FROM_STORE, CollectPreset, Preset, TeacherPreset, without_history
from ard.student.history import HistoryAttention
from ard.student.student import Prediction, StateKind, StudentConfig
from ard.training.loop import TrainConfig

# The learning rates were tuned on separate trajectories (docs/log.md).
ON_X_T = TrainConfig(iterations=1500, learning_rate=1.5e-3)
IN_ONE_STEP = TrainConfig(iterations=900, learning_rate=1.5e-3)
ON_NEXT_X_T = TrainConfig(iterations=1500, learning_rate=1.2e-2)  # The next state has to be learned from nothing.
ON_X_0_HAT = TrainConfig(iterations=900, learning_rate=3e-3)

TEACHER = TeacherPreset(
    network=named_config("tiny/2", latent_size=8, channels=1, num_classes=10),
    diffusion=Diffusion(),
    command="ard teach --data digits",
)
OURS = StudentConfig(num_steps=FROM_STORE)
PAPER = replace(OURS, prediction=Prediction.NEXT_STATE, history=HistoryAttention.SHARED)
X_0_HAT = replace(PAPER, state=StateKind.X_0_HAT)
ONE_STEP = replace(without_history(OURS), num_steps=1)


def teacher_training() -> TrainConfig:
    """How the tiny teacher of the embedded data is trained."""
    return TrainConfig(iterations=1300, batch_size=64, learning_rate=2e-3, ema_decay=0.995)


def further(train: TrainConfig) -> TrainConfig:
    """How a student is trained further that has been trained with `train`: shorter, at a fifth of the rate."""
    return replace(train, iterations=600, learning_rate=train.learning_rate / 5, warmup=0)


def _preset(about: str, student: StudentConfig, train: TrainConfig) -> Preset:
    collect = CollectPreset(states=(student.state,))
    return Preset(about=f"digits: {about}", teacher=TEACHER, collect=collect, student=student, train=train)


def _further(start: str, preset: Preset) -> Preset:
    """The adversarial stage (R + D), for a student that --resume-from names."""
    about = f"{preset.about}, then R + D"
    return replace(preset, about=about, train=further(preset.train), adversarial=True, start=start)


_ARD = _preset("ARD, solver steps on x_t, gated history in all blocks (M4)", OURS, ON_X_T)
_STEP = _preset("step distillation, solver steps on x_t", without_history(OURS), ON_X_T)

DIGITS: dict[str, Preset] = {
    # Ours: solver steps on x_t; ARD with the causal mask (M4) and gated history in all blocks.
    "ard": _ARD,
    "step": _STEP,
    "kd": _preset("knowledge distillation, one solver step", ONE_STEP, IN_ONE_STEP),
    # The paper's equations read literally: x_t, next state, one shared softmax.
    "ard-paper": _preset("ARD by the paper's equations, next x_t", PAPER, ON_NEXT_X_T),
    "step-paper": _preset("step distillation by the paper's equations, next x_t", without_history(PAPER), ON_NEXT_X_T),
    "kd-paper": _preset(
        "knowledge distillation, the image itself", replace(ONE_STEP, prediction=Prediction.NEXT_STATE), IN_ONE_STEP
    ),
    # As the authors re-implemented it: x_0_hat, next state.
    "ard-x0": _preset("ARD as in the authors' code, next x_0_hat", X_0_HAT, ON_X_0_HAT),
    "step-x0": _preset("step distillation as in the authors' code, next x_0_hat", without_history(X_0_HAT), ON_X_0_HAT),
    # The adversarial stage (R + D), for a student that --resume-from names.
    "ard-gan": _further("ard", _ARD),
    "step-gan": _further("step", _STEP),
}
