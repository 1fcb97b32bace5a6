"""The paper's own run, ImageNet 256 x 256 with DiT-XL/2: configured completely, with what it stores and computes.

Where the paper is silent, its authors' re-implementation speaks. What differs from it is listed in `DIFFERENCES`.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ard.analysis.budget import ASSUMPTIONS, TFLOPS, Workload, budget, hours, preset_workload
from ard.core.devices import DeviceName, resolve_device
from ard.core.errors import InputError, require_at_least
from ard.core.files import read_json, write_atomically
from ard.diffusion.process import DiffusionKind
from ard.evaluation.adm import read_reference
from ard.evaluation.protocol import Weights, load_networks
from ard.presets import TABLE_1_PRESETS
from ard.presets.commands import collect_arguments, distill_arguments
from ard.reporting.table import as_markdown
from ard.student.decoding import find_autoencoder, space_of_teacher
from ard.studies.paper.paper import TABLE_1, TABLE_1_ADVERSARIAL, PaperRow
from ard.studies.stages import Stage, run_missing
from ard.teacher.teacher import load_teacher_card

NAME = "imagenet256-ard"  # The preset whose trajectories serve all rows.
PRESET = TABLE_1_PRESETS[NAME]
ALL_ROWS = (*TABLE_1, *TABLE_1_ADVERSARIAL)
EVALUATION_SEEDS = "10000000-10049999"  # 50,000 noises that the trajectories do not have.
DIFFERENCES = (
    "a step's time is the teacher's own time there, not 999 times 1, 3/4, 2/4, 1/4",
    "bf16 autocast over float32 weights on a GPU, not TF32",
    "a learned embedding per step beside the time's, zero at the start",
    "with 2 steps the points are 0, 15 and 25: neither the paper nor its code says which",
    "the label of a trajectory is its seed modulo 1000",
    "with a discriminator, the store's images stand for ImageNet's, whose latents an imported teacher does not bring",
    "the stage with a discriminator has 40,000 updates, which the authors' option says and their loop ignores",
)


@dataclass(frozen=True, kw_only=True)
class ImagenetConfig:
    """The paper's run; where the paper is silent, its authors' re-implementation speaks."""

    teacher_folder: Path | None = None
    """imagenet256: folder of the teacher DiT-XL/2 for 256 x 256 pixels."""
    vae: Path | None = None
    """imagenet256: folder of the autoencoder that DiT's latents come from, in diffusers' format."""
    ref: Path | None = None
    """imagenet256: ADM's reference batch VIRTUAL_imagenet256_labeled.npz."""
    inception: Path | None = None
    """imagenet256: weights of the Inception network, pt_inception-2015-12-05-6726825d.pth."""
    num_trajectories: int = PRESET.collect.num
    """imagenet256: stored teacher trajectories (Section 4.1)."""
    iterations: int = PRESET.train.iterations
    """imagenet256: updates of every student with the loss R (the authors' code)."""
    distill_batch: int = PRESET.train.batch_size
    """imagenet256: trajectories per update with the loss R (the authors' code)."""
    tflops: float = TFLOPS
    """imagenet256: the rate of one command's device at which --dry-run computes hours, in 10^12 FLOP/s."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        numbers = {"num_trajectories": self.num_trajectories, "iterations": self.iterations}
        require_at_least(1, {**numbers, "distill_batch": self.distill_batch})
        if not 0 < self.tflops < float("inf"):
            raise InputError(f"tflops is {self.tflops}; it must be a positive number")


def stages(config: ImagenetConfig) -> list[tuple[str, list[Stage]]]:
    """Every command: the trajectories, the students of Table 1 and their evaluation, then the same with R + D."""
    regression, further = ([_student_stage(line, config) for line in lines] for lines in (TABLE_1, TABLE_1_ADVERSARIAL))
    return [
        ("trajectories", [_collect_stage(config)]),
        ("students", regression),
        ("evaluation", [_evaluation_stage(stage, config) for stage in regression]),
        ("students with R + D", further),
        ("evaluation with R + D", [_evaluation_stage(stage, config) for stage in further]),
    ]


def imagenet_plan(out: Path, config: ImagenetConfig) -> dict[str, Any]:
    """What --dry-run shows: the commands, bytes on the disk, FLOPs, hours, and the memory of the largest student."""
    costs = {line.preset: budget(_workload(line, config)) for line in ALL_ROWS}
    flop = {"collect": costs[NAME].collect_flop, **{name: one.distill_flop for name, one in costs.items()}}
    rounded = {name: round(hours(cost, config.tflops), 1) for name, cost in flop.items()}
    largest = max(costs.values(), key=lambda one: one.float32.total)
    return {
        "storage_gb": round(costs[NAME].store_bytes / 1e9, 1),
        "checkpoints_gb": round(sum(one.run_bytes for one in costs.values()) / 1e9, 1),
        "flop": flop,
        "flop_total": sum(flop.values()),
        "tflops": config.tflops,
        "hours": rounded,
        "hours_total": round(sum(rounded.values()), 1),
        "memory_bytes": largest.plain(config.tflops)["memory_bytes"],
        "assumptions": ASSUMPTIONS,
        "missing": missing(config),
        "differences": DIFFERENCES,
        "commands": {name: [shlex.join(["ard", *one.command(out)]) for one in group] for name, group in stages(config)},
    }


def missing(config: ImagenetConfig) -> dict[str, str]:
    """What the run needs and has not got, by option."""
    needed: Mapping[str, tuple[Path | None, str]] = {
        "--teacher-folder": (config.teacher_folder, "folder of the teacher DiT-XL/2"),
        "--vae": (config.vae, "folder of the autoencoder"),
        "--ref": (config.ref, "ADM's reference batch"),
        "--inception": (config.inception, "weights of the Inception network"),
    }
    return {name: what for name, (path, what) in needed.items() if path is None or not path.exists()}


def run_imagenet(out: Path, config: ImagenetConfig, *, device: DeviceName, jobs: int) -> Path:
    """Run what is missing, and publish report.md; InputError when weights or data are missing or unfit."""
    if absent := missing(config):
        words = ", ".join(f"{option} ({what})" for option, what in absent.items())
        raise InputError(f"imagenet256 needs what is not there: {words}; nothing is downloaded, give the paths")
    _check(config, resolve_device(device))
    for name, group in stages(config):
        run_missing(out, group, device=device, jobs=1 if name == "trajectories" else jobs, title=name)
    write_atomically(out / "report.md", imagenet_report(out).encode())
    return out / "report.md"


def imagenet_report(out: Path) -> str:
    """Table 1 with the paper's numbers and ours, from the evaluations in `out`."""
    names = ("fid", "inception_score", "precision", "recall")
    header = ["method", "loss", "S", "N", *(f"paper: {name}" for name in names), *(f"ours: {name}" for name in names)]
    body = []
    for line in ALL_ROWS:
        ours = read_json(out / f"{line.preset}.json")["metrics"]
        numbers = [f"{source[name]:.4g}" for source in (vars(line), ours) for name in names]
        body.append([line.method, line.loss, str(line.setting.num_steps), str(line.blocks), *numbers])
    told = "\n".join(f"- {difference}" for difference in DIFFERENCES)
    return f"# ImageNet 256 x 256\n\n{as_markdown(header, body)}\n\nWhat differs from the authors' code:\n\n{told}\n"


def _check(config: ImagenetConfig, device: torch.device) -> None:
    """InputError when a file is not what its option asks for; a run of days should not end for that."""
    assert config.teacher_folder is not None  # noqa: S101 missing() has seen to it
    card, wanted = load_teacher_card(config.teacher_folder), PRESET.teacher.network
    if card.network != wanted or card.diffusion.kind is not DiffusionKind.VP:
        raise InputError(f"the teacher in {config.teacher_folder} is no DiT-XL/2 with DiT's diffusion at 256 x 256")
    find_autoencoder(config.vae, space_of_teacher(card, config.teacher_folder))
    load_networks({"inception"}, Weights(inception=config.inception), device)
    if config.ref is not None:
        read_reference(config.ref)


def _workload(line: PaperRow, config: ImagenetConfig) -> Workload:
    """What a row computes and stores, with the numbers of `config`."""
    work = preset_workload(TABLE_1_PRESETS[line.preset], PRESET.teacher.network)
    train = replace(work.train, iterations=config.iterations, batch_size=config.distill_batch)
    return replace(work, num=config.num_trajectories, train=work.train if line.adversarial else train)


def _collect_stage(config: ImagenetConfig) -> Stage:
    teacher = str(config.teacher_folder or "TEACHER")
    words = [teacher if word == "OUT/teacher" else word for word in collect_arguments(NAME, PRESET)]
    return Stage("trajectories", (*words, *_words({"num": config.num_trajectories})))


def _student_stage(line: PaperRow, config: ImagenetConfig) -> Stage:
    numbers = {"iterations": config.iterations, "batch-size": config.distill_batch}
    words = distill_arguments(line.preset, TABLE_1_PRESETS[line.preset])
    return Stage(line.preset, (*words, *_words({} if line.adversarial else numbers)))


def _evaluation_stage(student: Stage, config: ImagenetConfig) -> Stage:
    options = {
        "samples": f"OUT/{student.folder}",
        "seeds": EVALUATION_SEEDS,
        "vae": config.vae or "VAE",
        "ref": config.ref or "REF",
        "inception": config.inception or "INCEPTION",
        "metrics": "fid,sfid,is,pr",
    }
    return Stage(f"{student.folder}.json", ("evaluate", *_words(options)), option="--json")


def _words(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))
