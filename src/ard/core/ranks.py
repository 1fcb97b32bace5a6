"""The ranks of a run as torchrun sets them in the environment; one process is rank 0 of 1."""

import os
import re

from ard.core.errors import InputError


def rank_and_world() -> tuple[int, int]:
    """(rank, world size) of this process; InputError when RANK and WORLD_SIZE make no sense together."""
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if rank >= world:
        raise InputError(f"RANK is {rank} and WORLD_SIZE is {world}; RANK counts from 0 and is below WORLD_SIZE")
    return rank, world


def require_one_process(what: str) -> None:
    """InputError when this process is one of several ranks, which `what` cannot share."""
    world = rank_and_world()[1]
    if world > 1:
        raise InputError(f"WORLD_SIZE is {world}, and {what} runs in one process; start it without torchrun, once")


def gpu_of_rank(available: int) -> int | None:
    """Which of the `available` GPUs is this rank's: LOCAL_RANK's; None where that is not set, as for one process.

    A process that sees one GPU only takes that: it was given to it. InputError when there are too few.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    rank = _number("LOCAL_RANK", 0)
    if available == 1:
        return 0
    if rank >= available:
        raise InputError(
            f"LOCAL_RANK is {rank}, and there are {available} GPUs here; start at most one process for each"
        )
    return rank


def ranks_on_this_machine() -> int:
    """How many ranks share this machine, as torchrun says; 1 where it does not."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1))


def _number(name: str, missing: int) -> int:
    """An environment variable that counts; InputError when it holds anything else."""
    text = os.environ.get(name, str(missing))
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"{name} is {text[:40]!r}; a number from 0 on is expected, as torchrun sets it; or unset it")
    return int(text)
