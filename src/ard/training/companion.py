"""What is trained beside the network: the seam at which the discriminator meets the training loop."""

from typing import Protocol, runtime_checkable

from ard.core.model_folder import StateDict


@runtime_checkable
class Companion(Protocol):
    """Something with a state of its own that follows the network's updates, such as the discriminator."""

    def after_update(self, step: int) -> None:
        """Take part in update `step`, after the network's own; the network must not change."""
        ...

    def report(self, step: int) -> dict[str, float]:
        """Values for the log, means since the report before; InputError in one line when the run should stop."""
        ...

    def tensors(self) -> StateDict:
        """Everything that a checkpoint must hold, so that resuming is exact."""
        ...

    def load(self, tensors: StateDict) -> None:
        """Take over what `tensors` gave; KeyError or RuntimeError when it does not fit."""
        ...


class Alone:
    """No companion: the network is trained by itself."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def report(self, step: int) -> dict[str, float]:  # noqa: ARG002 the Protocol's argument
        """Nothing to tell."""
        return {}

    def tensors(self) -> StateDict:
        """Nothing to keep."""
        return {}

    def load(self, tensors: StateDict) -> None:
        """Nothing to take over; KeyError when there is, because the checkpoint is another run's."""
        for name in tensors:
            raise KeyError(name)
