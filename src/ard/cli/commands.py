"""The commands by their verbs: where they are, what each does in a line, and which one was probably meant."""

import difflib
from collections.abc import Iterable

from ard.core.errors import InputError

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


def overview(group: str = "") -> str:
    """What `ard --help` prints, or what it prints about a group of verbs such as analyze."""
    start = f"{group} " if group else ""
    shown = {verb: about for verb, (_, _, about) in COMMANDS.items() if verb.startswith(start)}
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


def members(group: str) -> list[str]:
    """The second words of the verbs that start with `group`, such as analyze; empty when it is none."""
    return [verb.split()[1] for verb in COMMANDS if verb.startswith(f"{group} ")]


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """(verb, options); InputError that says what was probably meant where there is no such command."""
    first, seconds = arguments[0], members(arguments[0])
    if first in COMMANDS:
        return first, arguments[1:]
    if not seconds:
        groups = (verb.split()[0] for verb in COMMANDS)
        raise InputError(f"unknown command {first!r}; {meant(first, [*COMMANDS, *groups])}ard --help shows all")
    if not arguments[1:] or arguments[1] not in seconds:
        given, hint = (repr(arguments[1]), meant(arguments[1], seconds)) if arguments[1:] else ("nothing", "")
        raise InputError(
            f"{first} needs one of {', '.join(seconds)} behind it, not {given}; {hint}ard {first} --help shows all"
        )
    return f"{first} {arguments[1]}", arguments[2:]


def meant(word: str, known: Iterable[str]) -> str:
    """A question that names what is most like `word`, and a space; empty where nothing is."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
