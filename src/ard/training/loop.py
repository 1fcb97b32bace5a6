"""The training loop: the same for teachers and students, exact on resume."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ard.core.config import differences, later
from ard.core.errors import InputError, require_at_least
from ard.core.files import read_json, remove_leftovers, write_json
from ard.core.model_folder import require_whole_model
from ard.core.places import require_folder, size_of
from ard.core.progress import progress_bar
from ard.core.ranks import require_one_process
from ard.core.seeds import require_seed
from ard.core.stopping import stopping
from ard.training.companion import Alone, Companion
from ard.training.log import Log
from ard.training.state import AverageOn, TrainState, new_state, resume, save_checkpoint, trained_parameters

HOUSEKEEPING = frozenset(  # Change no bit.
    {"train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.activation_checkpointing"}
)


class Schedule(StrEnum):
    """What the learning rate does after its warm-up."""

    COSINE = "cosine"  # Falls to 5 % of its peak along a half cosine.
    CONSTANT = "constant"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained. The defaults suit the embedded data."""

    iterations: int = 1500
    """Number of updates."""
    batch_size: int = 32
    """Images or trajectories per update."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW."""
    warmup: int = 100
    """Updates over which the learning rate rises from 0."""
    schedule: Schedule = Schedule.COSINE
    """After the warm-up: cosine (to 5 %) or constant."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta2: float = 0.99
    """AdamW's second-moment decay; the first is 0.9."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema_decay: float = 0.99
    """Decay of the weights' moving average, which is what is published."""
    checkpoint_every: int = 500
    """Updates between checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay; 0 keeps all."""
    log_every: int = 25
    """Updates between lines of log.jsonl."""
    seed: int = 0
    """Decides the batches and everything else that is drawn."""
    accumulate: int = later(1)
    """Passes per update: each has its part of the batch, and their gradients add up. Must divide the batch size."""

    activation_checkpointing: bool = later(default=False)
    """Keep each block's input only and compute the rest again in the backward pass: less memory, the same bits."""

    compile: bool = later(default=False)
    """Compile the blocks (torch.compile), which pays on a GPU. Takes a minute at the start."""
    average_on: AverageOn = later(AverageOn.DEVICE)
    """Where the moving average is: beside the weights on the device, or on the cpu, which costs a copy per update."""

    @property
    def pass_size(self) -> int:
        """Images or trajectories per pass."""
        return self.batch_size // self.accumulate

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        require_at_least(1, {"iterations": self.iterations, "batch_size": self.batch_size})
        require_at_least(1, {"accumulate": self.accumulate})
        require_at_least(1, {"checkpoint_every": self.checkpoint_every, "log_every": self.log_every})
        require_at_least(0, {"warmup": self.warmup, "keep_checkpoints": self.keep_checkpoints})
        require_at_least(0, {"weight_decay": self.weight_decay})
        require_seed("seed", self.seed)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate is {self.accumulate}, which does not divide batch_size {self.batch_size}; give a divisor"
            )
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it must be a positive number")
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 0 to below 1")


def train(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    config: TrainConfig,
    folder: Path,
    *,
    run: dict[str, Any],
    description: str,
    groups: list[dict[str, Any]] | None = None,
    companion: Companion | None = None,
) -> TrainState:
    """Minimise the loss over the module's parameters that are not frozen, from the last checkpoint in `folder` on.

    `loss_at(number)` is the loss of a pass; update `step` has the passes from `step * accumulate` on, one at a time.
    `run` is the resolved configuration: a folder that holds another run is refused. `groups` are AdamW's parameter
    groups, whose "factor" multiplies their learning rate. `companion` is what is trained beside the module. A signal
    ends the run by Stopped after a last checkpoint.
    """
    require_one_process("training")
    require_folder(folder, size=_bytes_at_the_end(module, config) - size_of(folder))
    _claim(folder, run)
    fused = next(module.parameters()).device.type in {"cpu", "cuda"}
    parameters = list(trained_parameters(module).values())
    groups = groups or [{"params": parameters}]
    optimiser = AdamW(groups, config.learning_rate, (0.9, config.beta2), weight_decay=config.weight_decay, fused=fused)
    companion = companion or Alone()
    state = new_state(module, optimiser, companion, average_on=config.average_on)
    resume(folder / "checkpoints", state, keep=config.keep_checkpoints)
    log = Log(folder, state.step)
    started = time.monotonic() - state.seconds
    with stopping() as stop, progress_bar(config.iterations, description, unit="it", done=state.step) as bar:
        while state.step < config.iterations:
            rate = learning_rate(config, state.step)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("factor", 1.0)
            optimiser.zero_grad()
            loss = _accumulate(loss_at, state.step, config.accumulate)
            norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
            optimiser.step()
            state.average_weights(config.ema_decay)
            companion.after_update(state.step)
            state.step += 1
            log.add(loss, norm)
            bar.update()
            last, asked = state.step == config.iterations, stop.asked
            keep = last or asked or state.step % config.checkpoint_every == 0
            if keep or state.step % config.log_every == 0:
                state.seconds = time.monotonic() - started
                bar.set_postfix(loss=f"{log.write(state, rate):.3g}")
            if keep:
                log.flush()
                save_checkpoint(folder / "checkpoints", state, keep=config.keep_checkpoints)
            if asked and not last:
                stop.pause(f"update {state.step} of {config.iterations} is kept; the same command goes on from there")
    return state


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of update `step`: linear warm-up, then constant or a half cosine to 5 %."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule is Schedule.CONSTANT:
        return config.learning_rate
    done = (step - config.warmup) / max(config.iterations - config.warmup, 1)
    return config.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def _accumulate(loss_at: Callable[[int], Tensor], step: int, passes: int) -> Tensor:
    """Add up the gradients of update `step` over its passes, each of which is freed before the next; the mean loss."""
    losses = []
    for number in range(step * passes, (step + 1) * passes):
        loss = loss_at(number) / passes
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _bytes_at_the_end(module: nn.Module, config: TrainConfig) -> int:
    """About what a run writes: its checkpoints, with weights, average and both moments, and the published weights."""
    made = math.ceil(config.iterations / config.checkpoint_every)
    kept = min(made, config.keep_checkpoints) if config.keep_checkpoints else made
    trained = sum(parameter.nbytes for parameter in trained_parameters(module).values())
    return 4 * kept * trained + sum(parameter.nbytes for parameter in module.parameters())


def is_finished(folder: Path, run: dict[str, Any], kind: str) -> bool:
    """Whether `folder` holds the published result of this very run, a model of this kind.

    InputError when it holds another run, or when what was published is damaged.
    """
    if not (folder / "config.json").exists():
        return False
    if not (folder / "run.json").exists():
        raise InputError(f"{folder} holds a model and no run.json that says how it was made; choose another --out")
    _claim(folder, run)
    try:
        require_whole_model(folder, kind)
    except InputError as error:
        raise InputError(
            f"{folder} is finished and damaged: {error}; delete its config.json, and the same command publishes it "
            "again from its last checkpoint"
        ) from None
    return True


def _claim(folder: Path, run: dict[str, Any]) -> None:
    """Mark `folder` as this run's; InputError that names the difference when it is another's."""
    path = folder / "run.json"
    if path.exists() and (changes := differences(read_json(path), run, ignore=HOUSEKEEPING)):
        raise InputError(f"{folder} holds another run ({'; '.join(changes)}); choose another --out or delete it")
    remove_leftovers(folder)
    remove_leftovers(folder / "checkpoints")
    if not path.exists():
        write_json(path, run)
