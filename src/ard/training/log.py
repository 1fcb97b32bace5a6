"""log.jsonl: a line of means per some updates, appended; a run that goes on takes back what a kill has undone."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.files import MAX_JSON_BYTES, parse_json, read_whole, write_atomically
from ard.training.state import TrainState

NAME = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log, oldest first; empty when there is none. InputError that names a damaged one."""
    path = folder / NAME
    if not path.exists():
        return []
    whole = read_whole(path, at_most=MAX_JSON_BYTES).rpartition(b"\n")[0]  # A kill leaves a part of a line at the end.
    return [_parsed(line, f"{path}, line {number},") for number, line in enumerate(whole.splitlines(), start=1)]


class Log:
    """The log of a run at work. A value that is no number ends the run."""

    def __init__(self, folder: Path, step: int) -> None:
        """Keep the lines up to `step`; later ones come from updates that a kill has undone."""
        self.path = folder / NAME
        self.sums: list[Tensor] = []
        kept = "".join(f"{json.dumps(line)}\n" for line in read_log(folder) if line["step"] <= step).encode()
        if not self.path.exists() or read_whole(self.path, at_most=MAX_JSON_BYTES) != kept:
            write_atomically(self.path, kept)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Count one update; nothing is read back from the device."""
        self.sums.append(torch.stack([loss, norm]))

    def write(self, state: TrainState, rate: float) -> float:
        """Append a line and return the mean loss; InputError when it is infinite or not a number."""
        loss, norm = torch.stack(self.sums).mean(dim=0).tolist()
        self.sums.clear()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"the loss is {loss} and the gradient norm {norm} at update {state.step}; the last checkpoint, if "
                "there is one, is kept: try a lower --learning-rate, in another --out"
            )
        line = {
            "step": state.step,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "seconds": state.seconds,
            **state.companion.report(state.step),
        }
        with self.path.open("ab") as file:
            file.write(f"{json.dumps(line)}\n".encode())
        return float(loss)

    def flush(self) -> None:
        """Make the lines survive a power loss, as the checkpoint that follows does."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    value = parse_json(line, where=where)
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        raise InputError(f"{where} is damaged: an object with a step is expected; delete the line")
    return value
