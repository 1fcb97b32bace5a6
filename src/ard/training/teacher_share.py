"""The teacher's share of the wall time, in the log of a training whose trajectories it solves meanwhile."""

import time
from collections.abc import Callable

from ard.core.model_folder import StateDict
from ard.training.companion import Companion


class TeacherShare:
    """Another companion, whose report says too which part of the time since the one before was the teacher's."""

    def __init__(self, beside: Companion, worked: Callable[[], float]) -> None:
        """`worked` gives the seconds that the teacher has worked so far."""
        self.beside, self.worked = beside, worked
        self._last = time.monotonic(), worked()

    def after_update(self, step: int) -> None:
        """As the other's."""
        self.beside.after_update(step)

    def report(self, step: int) -> dict[str, float]:
        """The other's values and the share, 0 to 1."""
        values = self.beside.report(step)
        now, (then, before) = (time.monotonic(), self.worked()), self._last
        self._last = now
        return {**values, "teacher_share": (now[1] - before) / (now[0] - then)}

    def tensors(self) -> StateDict:
        """The other's: what the teacher has solved is solved again."""
        return self.beside.tensors()

    def load(self, tensors: StateDict) -> None:
        """As the other's."""
        self.beside.load(tensors)
