"""Whole runs as typed values, named after what they reproduce. Every option can be changed on the command line."""

from dataclasses import dataclass

from ard.history import HistoryAttention, HistoryMask
from ard.models.student import Prediction, StateKind, StudentConfig
from ard.training.distill import DistillConfig
from ard.training.loop import TrainConfig

NUM_TEACHER_STEPS = 24  # Divisible by 1, 2, 3, 4, 6, 8 and 12 student steps.
FROM_STORE = -1  # num_steps: as many as the store was collected for.


@dataclass(frozen=True, kw_only=True)
class DistillPreset:
    """A student, how it is trained, and one line that says what it is."""

    about: str
    student: StudentConfig
    train: TrainConfig
    distill: DistillConfig


def _preset(about: str, **student: object) -> DistillPreset:
    config = StudentConfig(**{"num_steps": FROM_STORE, **student})  # type: ignore[arg-type]  # names are checked there
    return DistillPreset(about=about, student=config, train=TrainConfig(), distill=DistillConfig())


_PAPER = {"prediction": Prediction.NEXT_STATE, "history": HistoryAttention.SHARED}
_X_0_HAT = {**_PAPER, "state": StateKind.X_0_HAT}
_NO_HISTORY = {"mask": HistoryMask.DIAGONAL, "history_blocks": 0}

DISTILL_PRESETS: dict[str, DistillPreset] = {
    "ard": _preset("ARD: causal mask (M4), gated history in all blocks, solver steps on x_t"),
    "step": _preset("step distillation (M1): the same without history", **_NO_HISTORY),
    "kd": _preset("knowledge distillation: one step from noise to image", **_NO_HISTORY, num_steps=1),
    "ard-paper": _preset("ARD as the paper writes it: x_t, next state, shared softmax", **_PAPER),
    "step-paper": _preset("step distillation as the paper writes it: x_t, next state", **_PAPER, **_NO_HISTORY),
    "ard-x0": _preset("ARD as the authors re-implemented it: x_0_hat, next state, shared softmax", **_X_0_HAT),
    "step-x0": _preset("step distillation as the authors re-implemented it", **_X_0_HAT, **_NO_HISTORY),
}


def teacher_training() -> TrainConfig:
    """How the tiny teacher of the embedded data is trained."""
    return TrainConfig(iterations=1300, batch_size=64, learning_rate=2e-3, ema_decay=0.995, beta2=0.99)
