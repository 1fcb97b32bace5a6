"""The ways of setting the method up in which the paper's comparisons are made."""

from dataclasses import dataclass

from ard.student.history import HistoryAttention
from ard.student.student import Prediction, StateKind


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way of setting the method up, in which the paper's comparisons are made."""

    name: str
    about: str
    state: StateKind
    prediction: Prediction
    history: HistoryAttention


RECIPES = (
    Recipe(
        name="code",
        about="as the authors re-implemented it: x_0_hat states, next state, one softmax",
        state=StateKind.X_0_HAT,
        prediction=Prediction.NEXT_STATE,
        history=HistoryAttention.SHARED,
    ),
    Recipe(
        name="equations",
        about="the paper's equations: x_t states, next state, one softmax",
        state=StateKind.X_T,
        prediction=Prediction.NEXT_STATE,
        history=HistoryAttention.SHARED,
    ),
    Recipe(
        name="ours",
        about="our default: x_t states, solver step, gated history",
        state=StateKind.X_T,
        prediction=Prediction.SOLVER_STEP,
        history=HistoryAttention.GATED,
    ),
)
