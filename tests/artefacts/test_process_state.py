"""A command leaves the process that calls it as it was: threads, environment, signals, random numbers and the rest."""

import locale
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from ard.cli import COMMANDS

# Each command at work, as small as it gets; those that only start others print their plan.
CALLS = {
    "teach": "--model tiny/4 --iterations 2 --batch-size 4 --warmup 0 --out {new}",
    "teacher import": "{toys}/dit.safetensors --format dit --num-heads 2 --out {new}",
    "collect": "--teacher {toys}/teacher --num 4 --num-teacher-steps 4 --workers 1 --out {new}",
    "trajectories": "verify {toys}/store",
    "text encode": "--prompts {toys}/prompts.txt --encoder {toys}/t5 --max-tokens 9 --out {new} --dry-run",
    "images cache": "--images {toys}/pictures --vae {vae} --size 8 --out {new}",
    "distill": "--trajectories {toys}/store --num-steps 2 --iterations 2 --batch-size 4 --warmup 0 --out {new}",
    "sample": "--student {toys}/student --seeds 0-1 --out {new}.png",
    "export": "--student {toys}/student --samples 1 --out {new}",
    "evaluate": "--student {toys}/student --num 100 --references {references} --json {new}.json",
    "flops": "--json {new}.json",
    "plan": "--preset ard",
    "analyze masks": "--out {new}",
    "analyze attention": "--student {toys}/student --num 4 --out {new}",
    "analyze errors": "--student {toys}/student --num 100 --references {references} --out {new}",
    "analyze convergence": "--student {toys}/kept --num 100 --references {references} --out {new}",
    "analyze solvers": "--teacher {toys}/teacher --solvers euler --steps 2 --reference-steps 4 --num 4 --out {new}",
    "analyze pareto": "--student {toys}/student --num 100 --references {references} --rounds 1 --out {new}",
    "sweep": "--trajectories {toys}/store --out {new} --dry-run",
    "reproduce": "--scale tiny --out {new} --dry-run",
    "demo": "--out {new} --dry-run",
    "bench all": "--dry-run",
    "bench cpu": "--dry-run",
    "bench ceilings": "--model tiny/4 --rounds 1",
    "bench latency": "--model tiny/4 --models step2 --rounds 1",
    "bench train": "--model tiny/4 --num-steps 2 --batch 2 --rounds 1 --layouts ours",
    "bench collect": "--model tiny/4 --num-teacher-steps 2 --rounds 1 --ways eager",
    "bench data": "--num 600 --batch-size 100 --rounds 1",
}
LONG = {"evaluate", *(f"analyze {name}" for name in ("errors", "convergence", "pareto"))}
LONG |= {f"bench {name}" for name in ("train", "collect", "latency")}
NO_DEVICE = {"teacher import", "trajectories", "flops", "plan", "analyze masks", "bench data", "export"}


def process_state() -> dict[str, object]:
    """What belongs to the whole process and what a call may have changed."""
    return {
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings filters": list(warnings.filters),
        "usual type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "numpy's random numbers": str(np.random.get_state()),  # noqa: NPY002 the one that is global
        "folder": Path.cwd(),
        "logging": (logging.root.level, logging.root.manager.disable, list(logging.root.handlers)),
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "matplotlib": dict(dict.items(mpl.rcParams)),
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_command_is_called_here() -> None:
    assert set(CALLS) == set(COMMANDS)


@pytest.mark.parametrize("verb", [pytest.param(verb, marks=pytest.mark.slow if verb in LONG else ()) for verb in CALLS])
@pytest.mark.usefixtures("two_threads")
def test_a_command_puts_back_what_it_changes_for_the_whole_process(
    verb: str, toys: Path, references: Path, autoencoder_folder: Path, tmp_path: Path, made: Callable[..., str]
) -> None:
    call = CALLS[verb].format(toys=toys, references=references, vae=autoencoder_folder, new=tmp_path / "new")
    before = process_state()
    made(*verb.split(), *shlex.split(call), *([] if verb in NO_DEVICE else ["--device", "cpu"]))
    after = process_state()
    assert [name for name in before if before[name] != after[name]] == []
