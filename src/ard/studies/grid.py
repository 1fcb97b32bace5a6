"""A grid of students: what its cells are, which of them are equal, and the command that trains each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ard.core.errors import InputError, require_at_least
from ard.diffusion.process import Diffusion
from ard.presets.fitted import LARGE_RATE, SMALL, fitted_rate
from ard.student.history import HistoryAttention, HistoryMask
from ard.student.student import Prediction, StateKind, StudentConfig, default_prediction
from ard.studies.stages import Stage

# By state, prediction and how the history is read: tuned for 600 updates at S = 4 (kd: S = 1) on separate
# trajectories of the embedded data's teacher (docs/log.md).
LEARNING_RATES: dict[tuple[StateKind, Prediction | None], dict[str, float]] = {
    (StateKind.X_T, Prediction.SOLVER_STEP): {"kd": 3e-3, "step": 1.5e-3, "shared": 1.5e-3, "gated": 1.5e-3},
    (StateKind.X_T, Prediction.NEXT_STATE): {"kd": 3e-3, "step": 2.4e-2, "shared": 2.4e-2, "gated": 2.4e-2},
    (StateKind.X_0_HAT, Prediction.SOLVER_STEP): {"step": 1.2e-2, "shared": 6e-3, "gated": 6e-3},
    (StateKind.X_0_HAT, Prediction.NEXT_STATE): {"step": 1.2e-2, "shared": 2.4e-2, "gated": 1.2e-2},
}
SAME_RATES: dict[Prediction | None, Prediction] = {
    Prediction.BOUNDED_STEP: Prediction.SOLVER_STEP,
    Prediction.CLEAN: Prediction.NEXT_STATE,
    Prediction.VELOCITY: Prediction.NEXT_STATE,
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a student is and whose history it learns from; how long and how fast it learns is not part of it."""

    student: StudentConfig
    own_history: float

    @property
    def reading(self) -> str:
        """How the history is read: shared or gated; step when it is not, kd when there is none."""
        if self.student.history_blocks:
            return str(self.student.history)
        return "step" if self.student.num_steps > 1 else "kd"

    @property
    def arm(self) -> str:
        """What shares a learning rate: state, prediction, how the history is read, and whose it is."""
        own = f" own {self.own_history!r}" if self.own_history else ""
        return f"{self.student.state} {self.student.prediction} {self.reading}{own}"

    @property
    def name(self) -> str:
        """Two designs have one name exactly when they are equal."""
        student = self.student
        parts = [str(student.state), str(student.prediction), f"s{student.num_steps}", str(student.mask)]
        parts += [f"n{student.history_blocks}", student.history] if student.history_blocks else []
        return "-".join([*parts, *([f"own{self.own_history!r}"] if self.own_history else [])])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student to train."""

    design: Design
    learning_rate: float
    iterations: int
    batch_size: int
    seed: int

    @property
    def group(self) -> str:
        """What the seeds of one group have in common."""
        return f"{self.design.name}-lr{self.learning_rate!r}-it{self.iterations}-b{self.batch_size}"

    @property
    def name(self) -> str:
        """The student's folder."""
        return f"{self.group}-seed{self.seed}"

    def stage(self, store: Path, teacher: Path, *, inputs: str, checkpoint_every: int = 0) -> Stage:
        """The command that trains it from `store`, whose identity is `inputs`.

        With `checkpoint_every` all checkpoints stay, for convergence curves.
        """
        student = self.design.student
        options: dict[str, Any] = {
            "trajectories": store,
            "teacher": teacher,
            "num-steps": student.num_steps,
            "state": student.state,
            "prediction": student.prediction,
            "mask": student.mask,
            "history-blocks": student.history_blocks,
            "history": student.history,
            "own-history": self.design.own_history,
            "learning-rate": self.learning_rate,
            "iterations": self.iterations,
            "batch-size": self.batch_size,
            "seed": self.seed,
            "checkpoint-every": checkpoint_every or self.iterations,
            "keep-checkpoints": 0 if checkpoint_every else 1,
        }
        words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
        return Stage(self.name, ("distill", "--preset", "ard", *words), inputs=inputs)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values of every axis. Its students are their product, without those that another axis makes equal."""

    num_steps: tuple[int, ...] = (4,)
    masks: tuple[HistoryMask, ...] = (HistoryMask.DIAGONAL, HistoryMask.CAUSAL)
    history_blocks: tuple[int, ...] = (-1,)
    """N; -1 means all blocks."""
    histories: tuple[HistoryAttention, ...] = (HistoryAttention.GATED,)
    states: tuple[StateKind, ...] = (StateKind.X_T,)
    predictions: tuple[Prediction | None, ...] = (None,)
    """None: what suits the teacher's diffusion and the states."""
    own_histories: tuple[float, ...] = (0.0,)
    learning_rates: tuple[float, ...] = ()
    """Empty: the tuned defaults. Of several, every arm takes the one that is best on separate trajectories."""
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int = 600
    batch_size: int = 32
    diffusion: Diffusion = field(default_factory=Diffusion)
    """The teacher's."""
    width: int = SMALL
    """The teacher's, which the tuned learning rates are fitted to."""

    def __post_init__(self) -> None:
        """Refuse an axis without values and numbers that cannot be meant; a value said twice is one value."""
        axes = ("num_steps", "masks", "history_blocks", "histories", "states", "predictions", "own_histories", "seeds")
        if empty := [name for name in axes if not getattr(self, name)]:
            raise InputError(f"{empty[0]} is empty; give at least one value")
        for name in (*axes, "learning_rates"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if wrong := [rate for rate in self.learning_rates if not 0 < rate < math.inf]:
            raise InputError(f"learning_rates has {wrong[0]:g}; a learning rate is a positive number")
        if wrong := [share for share in self.own_histories if not 0 <= share <= 1]:
            raise InputError(f"own_histories has {wrong[0]:g}, which is no probability; allowed: 0 to 1")
        require_at_least(1, {"num_steps": min(self.num_steps), "iterations": self.iterations})
        require_at_least(1, {"batch_size": self.batch_size})

    def designs(self, depth: int) -> list[Design]:
        """Every different student of a teacher with `depth` blocks."""
        axes = (self.num_steps, self.masks, self.history_blocks, self.histories)
        students = (
            canonical_student(state, prediction or default_prediction(self.diffusion, state), *rest, depth=depth)
            for (state, prediction), rest in product(product(self.states, self.predictions), product(*axes))
        )
        pairs = product(dict.fromkeys(students), self.own_histories)
        designs = (Design(student=one, own_history=own if one.num_steps > 1 else 0.0) for one, own in pairs)
        return list(dict.fromkeys(designs))

    def cells(self, depth: int, rates: Mapping[str, float]) -> list[Cell]:
        """Every design with every seed, at its arm's learning rate; the seeds are the slowest axis."""
        designs = self.designs(depth)
        return [self._cell(design, rates[design.arm], seed) for seed in self.seeds for design in designs]

    def trials(self, depth: int) -> list[Cell]:
        """Every learning rate for each arm's student with most steps and most history, with the first seed."""
        arms: dict[str, Design] = {}
        for design in sorted(self.designs(depth), key=_size):
            arms[design.arm] = design
        return [self._cell(design, rate, self.seeds[0]) for design in arms.values() for rate in self.learning_rates]

    def default_rates(self, depth: int) -> dict[str, float]:
        """The learning rate of each arm when nothing is tuned: the one given, or the tuned default."""
        return {
            one.arm: self.learning_rates[0]
            if self.learning_rates
            else fitted_rate(tuned_rate(one), LARGE_RATE, width=self.width)
            for one in self.designs(depth)
        }

    def _cell(self, design: Design, rate: float, seed: int) -> Cell:
        iterations, batch_size = self.iterations, self.batch_size
        return Cell(design=design, learning_rate=rate, iterations=iterations, batch_size=batch_size, seed=seed)


def tuned_rate(design: Design) -> float:
    """The learning rate of a design on the embedded data's teacher."""
    student = design.student
    like = SAME_RATES.get(student.prediction, student.prediction)
    return LEARNING_RATES[student.state, like][design.reading]


def canonical_student(
    state: StateKind,
    prediction: Prediction,
    num_steps: int,
    mask: HistoryMask,
    blocks: int,
    history: HistoryAttention,
    *,
    depth: int,
) -> StudentConfig:
    """One form for equal students: S = 1 has no history and one kind of state, M1 is N = 0, at S = 2 M2 = M3 = M4."""
    blocks = depth if blocks == -1 else blocks
    if blocks > depth:
        raise InputError(f"history_blocks is {blocks}; the teacher has {depth} blocks: 0 to {depth}, or -1 for all")
    if num_steps == 1:
        state, mask = StateKind.X_T, HistoryMask.DIAGONAL
    if num_steps == 2 and mask is not HistoryMask.DIAGONAL:
        mask = HistoryMask.CAUSAL
    if mask is HistoryMask.DIAGONAL or blocks == 0:
        mask, blocks, history = HistoryMask.DIAGONAL, 0, HistoryAttention.GATED
    return StudentConfig(
        num_steps=num_steps,
        mask=mask,
        history_blocks=blocks,
        history=history,
        prediction=prediction,
        state=state,
    )


def _size(design: Design) -> tuple[int, int, int]:
    """How much a design reads: its steps, the earlier steps that its last one reads, N."""
    student = design.student
    return student.num_steps, len(student.mask.readable(student.num_steps - 1)), student.history_blocks
