"""What training carries from step to step, and its checkpoints: one safetensors file each, exact to the bit."""

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import AdamW

from ard.core.config import from_plain, to_plain
from ard.core.errors import InputError
from ard.core.files import parse_json, write_atomically
from ard.core.model_folder import StateDict, checksum, read_weights, to_bytes
from ard.core.progress import say
from ard.training.companion import Alone, Companion


class AverageOn(StrEnum):
    """Where the weights' moving average is kept."""

    DEVICE = "device"  # Beside the weights.
    CPU = "cpu"  # In main memory: the weights are copied there in every update, which waits for the device.


class DamagedCheckpointError(InputError):
    """A checkpoint is cut off or was changed; the one before it may be whole."""


@dataclass(frozen=True, kw_only=True)
class CheckpointNote:
    """What a checkpoint's header says."""

    step: int
    seconds: float
    crc32: str
    """Of all its tensors."""


@dataclass
class TrainState:
    """Weights, their moving average, the optimiser, and how far training has come."""

    module: nn.Module
    average: list[Tensor]
    """EMA of the parameters that are trained, in their order. Buffers are constants and are never averaged."""
    optimiser: AdamW
    companion: Companion = field(default_factory=Alone)
    """What is trained beside the module; its tensors are in the checkpoints too."""
    step: int = 0
    seconds: float = 0.0

    @torch.no_grad()
    def average_weights(self, decay: float) -> None:
        """Move the average towards the weights; the decay warms up, so that the first steps are forgotten."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        weights = [one.to(average.device) for one, average in zip(self.trained().values(), self.average, strict=True)]
        torch._foreach_lerp_(self.average, weights, 1 - decay)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained; the others are not kept, because they are the start's."""
        return trained_parameters(self.module)

    def averaged(self) -> StateDict:
        """The average under the parameters' names: what is published."""
        return dict(zip(self.trained(), self.average, strict=True))


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def frozen_parameters(module: nn.Module) -> StateDict:
    """The parameters that stay as they were at the start."""
    return {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}


def new_state(
    module: nn.Module,
    optimiser: AdamW,
    companion: Companion | None = None,
    *,
    average_on: AverageOn = AverageOn.DEVICE,
) -> TrainState:
    """The state before the first step."""
    parameters = trained_parameters(module).values()
    match average_on:
        case AverageOn.DEVICE:
            average = [parameter.detach().clone() for parameter in parameters]
        case AverageOn.CPU:
            average = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    return TrainState(module, average, optimiser, companion or Alone())


def save_checkpoint(folder: Path, state: TrainState, *, keep: int) -> None:
    """Publish the checkpoint of `state.step`, and delete the oldest ones beyond `keep` (0 keeps all)."""
    frozen = frozen_parameters(state.module).keys()
    tensors = {f"model.{name}": value for name, value in state.module.state_dict().items() if name not in frozen}
    tensors |= {f"average.{name}": value for name, value in state.averaged().items()}
    tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(state.optimiser).items()}
    tensors |= {f"companion.{name}": value for name, value in state.companion.tensors().items()}
    note = CheckpointNote(step=state.step, seconds=state.seconds, crc32=checksum(tensors))
    metadata = {"ard": json.dumps(to_plain(note))}
    write_atomically(folder / f"step-{state.step:07d}.safetensors", to_bytes(tensors, metadata))
    prune(folder, keep=keep)


def prune(folder: Path, *, keep: int) -> None:
    """Delete the oldest checkpoints beyond `keep`; 0 keeps all."""
    if keep:
        for path in checkpoints(folder)[:-keep]:
            path.unlink()


def resume(folder: Path, state: TrainState, *, keep: int) -> None:
    """Take over the last whole checkpoint in `folder`, if there is one, and delete those that a kill left too many.

    Damaged ones after it are told of and deleted. InputError when there are only damaged ones, which then stay, or when
    the last whole one belongs to another network.
    """
    found, damaged = checkpoints(folder), dict[Path, DamagedCheckpointError]()
    for path in reversed(found):
        try:
            load_checkpoint(path, state)
            break
        except DamagedCheckpointError as error:
            damaged[path] = error
    if damaged and len(damaged) == len(found):
        raise InputError(f"{damaged[found[0]]}, and there is no whole one before it; delete it to start anew")
    for path, told in damaged.items():
        say(f"{told}; it is deleted, and training goes on from the one of update {state.step}")
        path.unlink()
    prune(folder, keep=keep)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", path.stem))


def load_checkpoint(path: Path, state: TrainState) -> None:
    """Take over a checkpoint; DamagedCheckpointError when it is damaged, InputError when it is another network's."""
    note, tensors = _read_checkpoint(path)
    try:
        state.module.load_state_dict({**frozen_parameters(state.module), **part(tensors, "model.")})
        average = part(tensors, "average.")
        for name, value in state.averaged().items():
            value.copy_(average[name])
        load_optimiser(state.optimiser, part(tensors, "optimiser."))
        state.companion.load(part(tensors, "companion."))
        state.step, state.seconds = note.step, note.seconds
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not fit this run ({reason}); delete it to go on from the one before") from None


def read_note(path: Path) -> tuple[CheckpointNote, list[str]]:
    """What a checkpoint says of itself and the names of its tensors; DamagedCheckpointError when that is not there."""
    try:
        with safe_open(path, "pt") as file:
            names, text = list(file.keys()), (file.metadata() or {}).get("ard", "")
        return from_plain(CheckpointNote, parse_json(text, where="its header"), where="its header"), names
    except (InputError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} is damaged ({error})") from None


def _read_checkpoint(path: Path) -> tuple[CheckpointNote, StateDict]:
    """What a checkpoint says of itself, and its tensors; DamagedCheckpointError unless they match."""
    try:
        tensors = read_weights(path)
    except InputError as error:
        raise DamagedCheckpointError(str(error)) from None
    note, _ = read_note(path)
    if note.crc32 != checksum(tensors):
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match")
    return note, tensors


def optimiser_tensors(optimiser: AdamW) -> StateDict:
    """The optimiser's moments and counts, named by the parameter's index and their own name."""
    states = optimiser.state_dict()["state"].items()
    return {f"{index}.{name}": value for index, values in states for name, value in values.items()}


def load_optimiser(optimiser: AdamW, tensors: StateDict) -> None:
    """Take over what `optimiser_tensors` gave."""
    plain = optimiser.state_dict()
    plain["state"] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        plain["state"].setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(plain)


def part(tensors: StateDict, prefix: str) -> StateDict:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
