"""The defaults that --preset and --resume-from fill in, before the other options are read."""

import dataclasses
import functools
from typing import Any

from ard.cli.given import value_of
from ard.core.errors import InputError


def with_preset(verb: str, command: Any, arguments: list[str]) -> Any:
    """The class of a command, with the defaults that its arguments name."""
    match verb:
        case "distill":
            return _distilling(command, arguments)
        case "collect":
            return _collecting(command, arguments)
        case _:
            return command


def _distilling(command: Any, arguments: list[str]) -> Any:
    """`command` with the defaults that `--preset` names, before the other options are read."""
    from ard.cli.distill import design_of, fitted_to_teacher
    from ard.presets import DISCRIMINATORS, find_preset

    start, chosen = value_of("resume-from", arguments), value_of("preset", arguments)
    design = design_of(start) if start and not chosen else None  # The starting student's, when nothing says otherwise.
    name = chosen or (design.preset if design else "ard")
    preset = find_preset(name)
    names = ("student", "train", "distill", "grid", "adversarial", "discriminator")
    parts = {name: getattr(preset, name) for name in names}
    parts["solving"] = preset.online
    if not design:
        store, teacher = value_of("trajectories", arguments), value_of("teacher", arguments)
        count, size = value_of("iterations", arguments), value_of("batch-size", arguments)
        parts |= fitted_to_teacher(preset, store=store, teacher=teacher, iterations=count, batch_size=size)
    else:
        parts |= {"student": design.student, "train": design.train, "grid": ()}  # The grid is the student's too.
    parts["discriminator"] = discriminator = value_of("discriminator", arguments) or preset.discriminator
    if discriminator not in DISCRIMINATORS:
        raise InputError(f"unknown discriminator {discriminator!r}; allowed: {', '.join(DISCRIMINATORS)}")
    return functools.partial(command, preset=name, adversary=DISCRIMINATORS[discriminator], **parts)


def _collecting(command: Any, arguments: list[str]) -> Any:
    """`command` with the options of the trajectories that `--preset` names, if it is given."""
    from ard.diffusion.timegrid import rescaled_indices
    from ard.presets import find_preset
    from ard.trajectories.execution import Execution

    name = value_of("preset", arguments)
    if name is None:
        return command
    preset = find_preset(name).collect
    parts = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    parts["execution"] = Execution()  # tyro takes no default from a factory behind a partial.
    steps = value_of("num-teacher-steps", arguments) or ""
    if value_of("keep", arguments) == "all":
        parts["grid"] = ()
    elif steps.isdecimal() and preset.grid:
        parts["grid"] = rescaled_indices(preset.grid, int(steps))
    return functools.partial(command, preset=name, **parts)
