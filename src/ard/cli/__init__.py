"""The command line: a verb, its options made from a dataclass, one line for a bad input."""

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import re
import sys
from itertools import pairwise
from typing import Any

from ard.cli.home import at_home
from ard.errors import InputError
from ard.processes import die_with_parent

COMMANDS = {
    # verb, of one word or two: (module, class, one line)
    "teach": ("ard.cli.teach", "Teach", "train a teacher on a data set"),
    "teacher import": (
        "ard.cli.teacher_import",
        "TeacherImport",
        "bring a published DiT, SiT, REPA or PixArt network as a teacher",
    ),
    "collect": ("ard.cli.collect", "Collect", "solve the teacher's ODE and store the trajectories"),
    "trajectories": ("ard.cli.trajectories", "Trajectories", "show or check a trajectory store"),
    "text encode": ("ard.cli.text_encode", "TextEncode", "encode prompts, for teachers that read text"),
    "images cache": ("ard.cli.images_cache", "ImagesCache", "encode real images once, for the discriminator"),
    "distill": ("ard.cli.distill", "Distill", "train a few-step student on stored trajectories"),
    "sample": ("ard.cli.sample", "Sample", "draw images from a student"),
    "export": ("ard.cli.export", "Export", "write a student as a pipeline of diffusers, to hand it on"),
    "evaluate": ("ard.cli.evaluate", "Evaluate", "measure students against their teacher and the data"),
    "flops": ("ard.cli.flops", "Flops", "count what a student costs, and the paper's table of it"),
    "plan": ("ard.cli.plan", "Plan", "what a whole run would do and cost: commands, storage, FLOP, hours, memory"),
    "analyze masks": ("ard.cli.analyze.masks", "Masks", "draw which steps a step reads (Figure 3b)"),
    "analyze attention": (
        "ard.cli.analyze.attention",
        "Attention",
        "how much each step reads its history (Figure 4)",
    ),
    "analyze errors": ("ard.cli.analyze.errors", "Errors", "which steps accumulate the error (Figure 6b)"),
    "sweep": ("ard.cli.sweep", "Sweep", "train and compare a grid of students on one trajectory store"),
    "analyze convergence": (
        "ard.cli.analyze.convergence",
        "Convergence",
        "score against training iterations (Figure 6a)",
    ),
    "analyze solvers": ("ard.cli.analyze.solvers", "Solvers", "error of the teacher's solvers for their steps"),
    "analyze pareto": ("ard.cli.analyze.pareto", "Pareto", "score against cost and latency (Figure 2c, d)"),
    "bench all": ("ard.cli.bench.all", "AllBench", "every benchmark of one network"),
    "bench cpu": ("ard.cli.bench.all", "CpuBench", "the same on a small network, in two minutes"),
    "bench ceilings": ("ard.cli.bench.ceilings", "CeilingsBench", "what the machine can do at best"),
    "bench latency": ("ard.cli.bench.latency", "LatencyBench", "how long drawing a batch takes (Table 1)"),
    "bench train": ("ard.cli.bench.train", "TrainBench", "how long an update of a student takes"),
    "bench collect": ("ard.cli.bench.collect", "CollectBench", "how long the teacher needs for trajectories"),
    "bench data": ("ard.cli.bench.data", "DataBench", "how fast a trajectory store is read"),
    "reproduce": (
        "ard.cli.reproduce",
        "Reproduce",
        "the paper's study: its tables, its figures, a verdict on its claims",
    ),
    "demo": ("ard.cli.demo", "Demo", "the whole pipeline on the embedded digits, with a report"),
}


def main() -> None:
    """Run `ard VERB OPTIONS`; exit status 2 and one line for a bad input.

    ARD_PARENT is the process that started this one as a stage of its own, and without which it ends.
    """
    if "ARD_PARENT" in os.environ:
        die_with_parent(int(os.environ["ARD_PARENT"]))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of `ard` with these arguments."""
    try:
        match arguments:
            case [] | ["-h" | "--help"]:
                print(_overview())
            case ["--version"]:
                print(importlib.import_module("ard").__version__)
            case [group, "-h" | "--help"] if _members(group):
                print(_overview(f"{group} "))
            case _:
                verb, options = _split(arguments)
                parse(verb, options).run()
    except InputError as error:
        return _complain(str(error))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}; nothing is lost, run the same command again to go on")
    except KeyboardInterrupt:
        print("ard: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _members(group: str) -> list[str]:
    """The second words of the verbs that start with `group`, such as analyze; empty when it is a verb itself."""
    return [verb.split()[1] for verb in COMMANDS if verb.startswith(f"{group} ")]


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """(verb, options); InputError when a group's second word is missing or unknown."""
    group, seconds = arguments[0], _members(arguments[0])
    if not seconds:
        return group, arguments[1:]
    if not arguments[1:] or arguments[1] not in seconds:
        given = repr(arguments[1]) if arguments[1:] else "nothing"
        raise InputError(f"{group} needs one of {', '.join(seconds)} behind it, not {given}")
    return f"{group} {arguments[1]}", arguments[2:]


def _complain(message: str) -> int:
    """Print one line and return the exit status of a bad input."""
    print(f"ard: {' '.join(message.split())}", file=sys.stderr)
    return 2


def parse(verb: str, arguments: list[str]) -> Any:
    """The command object for a verb; InputError in one line when the options do not parse."""
    import tyro

    if verb not in COMMANDS:
        raise InputError(f"unknown command {verb!r}; allowed: {', '.join(COMMANDS)}")
    module, name, _ = COMMANDS[verb]
    command = getattr(importlib.import_module(module), name)
    if verb == "distill":
        command = _with_preset(command, arguments)
    if verb == "collect":
        command = _collecting_with_preset(command, arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                command,
                args=arguments,
                prog=f"ard {verb}",
                config=(tyro.conf.EnumChoicesFromValues, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as stop:
        if stop.code:
            words = re.sub(r"[─│╭╮╰╯]+", " ", complaint.getvalue())
            raise InputError(" ".join(words.split())) from None
        raise
    return at_home(parsed)


def _with_preset(command: Any, arguments: list[str]) -> Any:
    """`command` with the defaults that `--preset` names, before the other options are read."""
    from ard.cli.distill import design_of
    from ard.presets import DISCRIMINATORS, find_preset

    start, chosen = _given("resume-from", arguments), _given("preset", arguments)
    design = design_of(start) if start and not chosen else None  # The starting student's, when nothing says otherwise.
    name = chosen or (design.preset if design else "ard")
    preset = find_preset(name)
    names = ("student", "train", "distill", "grid", "adversarial", "discriminator")
    parts = {name: getattr(preset, name) for name in names}
    parts["solving"] = preset.online
    if design:
        parts |= {"student": design.student, "train": design.train, "grid": ()}  # The grid is the student's too.
    parts["discriminator"] = discriminator = _given("discriminator", arguments) or preset.discriminator
    if discriminator not in DISCRIMINATORS:
        raise InputError(f"unknown discriminator {discriminator!r}; allowed: {', '.join(DISCRIMINATORS)}")
    return functools.partial(command, preset=name, adversary=DISCRIMINATORS[discriminator], **parts)


def _collecting_with_preset(command: Any, arguments: list[str]) -> Any:
    """`command` with the options of the trajectories that `--preset` names, if it is given."""
    from ard.presets import find_preset
    from ard.trajectories.execution import Execution

    name = _given("preset", arguments)
    if name is None:
        return command
    preset = find_preset(name).collect
    parts = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    parts["execution"] = Execution()  # tyro takes no default from a factory behind a partial.
    if _given("keep", arguments) == "all":
        parts["grid"] = ()
    return functools.partial(command, preset=name, **parts)


def _given(option: str, arguments: list[str]) -> str | None:
    """What follows an option, also joined to it by =; None when it is not given."""
    joined = (word.partition("=")[2] for word in arguments if word.startswith((f"--{option}=", f"--{_snake(option)}=")))
    pairs = dict(pairwise(arguments))
    return next(joined, pairs.get(f"--{option}", pairs.get(f"--{_snake(option)}")))


def _snake(option: str) -> str:
    return option.replace("-", "_")


def _overview(group: str = "") -> str:
    """What `ard --help` prints, or what it prints about a group of verbs."""
    shown = {verb: about for verb, (_, _, about) in COMMANDS.items() if verb.startswith(group)}
    lines = [f"  {verb:20} {about}" for verb, about in shown.items()]
    return "\n".join(
        [
            "ard: turn a diffusion transformer into a few-step generator by autoregressive distillation",
            "",
            "usage: ard COMMAND [OPTIONS]; each command explains itself with --help",
            "",
            *lines,
            "",
            "for instance:",
            "  ard demo --out runs/demo",
        ]
    )
