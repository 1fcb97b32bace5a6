"""ard plan: what a whole run would do and cost."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ard.analysis.budget import ASSUMPTIONS, TFLOPS, Budget, Workload, budget, hours, preset_workload
from ard.analysis.flops import network_name
from ard.cli.flops import TERMINAL, JsonPath
from ard.cli.options import print_plan, to_plain_dict
from ard.core.errors import InputError, require_at_least
from ard.core.outputs import Outputs
from ard.networks.transformer import TransformerConfig, named_config
from ard.presets import Preset, find_preset
from ard.presets.commands import collect_arguments, distill_arguments
from ard.reporting.table import as_text
from ard.teacher.teacher import load_teacher_card

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "AdamW's moments",
    "average": "their moving average",
    "activations": "activations",
    "total": "together",
    "activations_checkpointed": "activations, checkpointed",
    "total_checkpointed": "together, checkpointed",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show what a whole run would do and cost, without anything at hand: its commands, storage, FLOP, hours and memory.

    The hours and the memory are estimates, whose assumptions are printed with them. For instance:

        ard plan --preset imagenet256-ard
        ard plan --preset imagenet256-ard --batch-size 8 --tflops 150
        ard plan --preset imagenet256-ard --model DiT-B/2 --iterations 50000 --json plan.json
        ard plan --preset ard --model runs/teacher --tflops 0.1
        ard plan --preset ard
    """

    preset: str
    """A preset of `ard distill`."""
    model: str | None = None
    """Size and patch of the teacher, such as DiT-B/2, or a teacher's folder; None: the preset's."""
    num: int | None = None
    """Number of trajectories; None: the preset's."""
    iterations: int | None = None
    """Number of updates; None: the preset's."""
    batch_size: int | None = None
    """Trajectories per update; None: the preset's."""
    tflops: float = TFLOPS
    """The rate of the device at which hours are computed, in 10^12 FLOP/s."""
    out: Path = Path("runs")
    """The folder that the commands name."""
    json: JsonPath = None
    """Where to write the numbers as JSON; without a path they are printed instead of the text."""
    overwrite: bool = False
    """Replace a file that is no earlier output of this command, too."""
    dry_run: bool = False
    """Print the resolved configuration and count nothing."""

    def run(self) -> None:
        """Count; print the text or the JSON, or write the JSON."""
        preset = self._preset()
        network = _network(preset, self.model)
        if self.dry_run:
            return print_plan({"preset": preset, "network": network, "tflops": self.tflops})
        work, commands = preset_workload(preset, network), self._commands(preset)
        costs = budget(work)
        outputs = Outputs(command="plan", overwrite=self.overwrite)
        outputs.check(*([] if self.json == TERMINAL else [self.json]))
        if self.json != TERMINAL:
            print("\n".join(_text(self.preset, preset, work, costs, commands, self.tflops)))
        if self.json:
            plain = {"preset": self.preset, "commands": commands, "network": network, "student": work.student}
            _give(self.json, to_plain_dict({**plain, **costs.plain(self.tflops)}), outputs)

    def _preset(self) -> Preset:
        """The preset with the numbers that are given."""
        preset = find_preset(self.preset)
        given = {"num": self.num, "iterations": self.iterations, "batch_size": self.batch_size}
        require_at_least(1, {name: value for name, value in given.items() if value is not None})
        if not 0 < self.tflops < float("inf"):
            raise InputError(f"tflops is {self.tflops}; it must be a positive number")
        collect = replace(preset.collect, num=self.num or preset.collect.num)
        iterations, batch_size = self.iterations or preset.train.iterations, self.batch_size or preset.train.batch_size
        return replace(
            preset, collect=collect, train=replace(preset.train, iterations=iterations, batch_size=batch_size)
        )

    def _commands(self, preset: Preset) -> list[str]:
        """What to run in order; the numbers that are given are in it."""
        given = {"iterations": self.iterations, "batch-size": self.batch_size}
        updates = _words(given)
        lines = [
            (*preset.teacher.command.split()[1:], "--out", "OUT/teacher"),
            *([(*preset.teacher.prompts.split()[1:], "--out", "OUT/text")] if preset.teacher.prompts else []),
            (*collect_arguments(self.preset, preset), *_words({"num": self.num}), "--out", "OUT/trajectories"),
        ]
        if preset.start:
            start = distill_arguments(preset.start, find_preset(preset.start))
            lines.append((*start, "--out", f"OUT/{preset.start}"))
        lines.append((*distill_arguments(self.preset, preset), *updates, "--out", f"OUT/{self.preset}"))
        return [_command(line, self.out) for line in lines]


def _words(given: Mapping[str, int | None]) -> list[str]:
    """The options that are given."""
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def _command(words: Sequence[str], out: Path) -> str:
    """A line for a shell."""
    return shlex.join(["ard", *(re.sub(r"^OUT(?=/)", lambda _: str(out), word) for word in words)])


def _network(preset: Preset, model: str | None) -> TransformerConfig:
    """The preset's network, or the one called `model` on the same data."""
    network = preset.teacher.network
    if model is None:
        return network
    if Path(model).is_dir():
        return load_teacher_card(Path(model)).network
    try:
        shape = named_config(
            model, latent_size=network.latent_size, channels=network.channels, num_classes=network.num_classes
        )
    except InputError as error:
        raise InputError(f"{error}; or a folder, but {model} is no teacher here") from None
    names = ("width", "depth", "num_heads", "patch_size")
    return replace(network, **{name: getattr(shape, name) for name in names})


def _give(path: Path, plain: dict[str, Any], outputs: Outputs) -> None:
    """Print the JSON, or write it."""
    if path == TERMINAL:
        return print(json.dumps(plain, indent=2))
    outputs.json(path, plain)
    print(f"written to {path}")


def _text(
    name: str, preset: Preset, work: Workload, costs: Budget, commands: Sequence[str], tflops: float
) -> list[str]:
    """The whole plan for people."""
    start = f"Counted is the last command; the student before it: ard plan --preset {preset.start}"
    return [
        f"{name}: {preset.about}",
        _teacher(preset, work, costs),
        "",
        *(f"  {command}" for command in commands),
        "",
        _stages_table(work, costs, tflops),
        "",
        _memory_table(costs),
        "",
        *([start] if preset.start else []),
        *ASSUMPTIONS,
    ]


def _teacher(preset: Preset, work: Workload, costs: Budget) -> str:
    """The teacher, its solver, and the sizes of states and student."""
    network, ode = work.network, work.ode
    solver = f"{ode.num_teacher_steps} {ode.solver} steps, guidance {ode.guidance.cfg_scale:g}"
    states = f"states {network.channels} x {network.latent_size} x {network.latent_size}"
    student = f"student of {costs.float32.parameters / 1e6:.1f} M parameters"
    return "; ".join([f"teacher {network_name(network)}, {preset.teacher.diffusion.kind}", solver, states, student])


def _stages_table(work: Workload, costs: Budget, tflops: float) -> str:
    unit, size = _unit(costs.store_bytes)
    updates = f"{work.train.iterations} updates of {work.train.batch_size}"
    stored = f"{work.num} trajectories of {work.points} points"
    rows = [
        ("collect", stored, costs.store_bytes, costs.collect_flop),
        ("distill", updates, costs.run_bytes, costs.distill_flop),
        ("sample", "one image", 0, costs.sample_flop),
    ]
    body = [
        [stage, what, f"{kept / size:.1f}" if kept else "", f"{flop:.3g}", f"{hours(flop, tflops):.3g}"]
        for stage, what, kept, flop in rows
    ]
    return as_text(["stage", "what", f"{unit} on disk", "FLOP", f"hours at {tflops:g} TFLOP/s"], body)


def _memory_table(costs: Budget) -> str:
    unit, size = _unit(costs.float32.total)
    both = (costs.float32, costs.bf16)
    body = [[words, *(f"{getattr(one, name) / size:.1f}" for one in both)] for name, words in PARTS.items()]
    return as_text([f"memory of an update, {unit}", "float32", "bf16 autocast"], body)


def _unit(largest: int) -> tuple[str, float]:
    """Gigabytes, or megabytes for what is small."""
    return ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
