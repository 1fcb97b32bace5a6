"""The paper's own run, ImageNet 256 x 256 with DiT-XL/2: configured completely, with what it stores and computes.

Where the paper is silent, its authors' re-implementation speaks. What differs from it is listed in `DIFFERENCES`.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard.analysis.flops import student_row, teacher_row, usual_network
from ard.devices import DeviceName, resolve_device
from ard.diffusion import Diffusion, DiffusionKind, Solver
from ard.errors import InputError, require_at_least
from ard.evaluation.adm import read_reference
from ard.evaluation.protocol import Weights, load_networks
from ard.files import read_json, write_atomically
from ard.history import HistoryMask
from ard.models.autoencoder import find_autoencoder
from ard.models.student import Student, StudentConfig
from ard.models.transformer import Transformer
from ard.processes import only_worker
from ard.reproduce.paper import TABLE_1, PaperRow
from ard.stages import Stage, run_missing
from ard.table import as_markdown
from ard.teacher import Guidance, Ode, load_teacher_card

NUM_TEACHER_STEPS = 25
KEPT = (0, 5, 10, 15, 20, 25)
GRIDS = {1: (0, 25), 2: (0, 15, 25), 4: (0, 10, 15, 20, 25)}
BYTES_PER_VALUE = 2  # float16.
EVALUATION_SEEDS = "10000000-10049999"  # 50,000 noises that the trajectories do not have.
STATES_OF_A_CHECKPOINT = 4  # Weights, their average, and AdamW's two moments, in float32.
KEPT_CHECKPOINTS = 2
DIFFERENCES = (
    "a step's time is the teacher's own time there, not 999 times 1, 3/4, 2/4, 1/4",
    "bf16 autocast over float32 weights on a GPU, not TF32",
    "a learned embedding per step beside the time's, zero at the start",
    "with 2 steps the points are 0, 15 and 25: neither the paper nor its code says which",
    "the label of a trajectory is its seed modulo 1000",
    "the rows with a discriminator are not part of it",
)
BACKWARD = 3  # A forward and a backward pass cost three forward passes.


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
    num_trajectories: int = 2_560_000
    """imagenet256: stored teacher trajectories (Section 4.1)."""
    iterations: int = 300_000
    """imagenet256: updates of every student (the authors' code)."""
    distill_batch: int = 64
    """imagenet256: trajectories per update (the authors' code)."""
    tflops: float = 400.0
    """imagenet256: the rate of one command's device at which --dry-run computes hours, in 10^12 FLOP/s."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        numbers = {"num_trajectories": self.num_trajectories, "iterations": self.iterations}
        require_at_least(1, {**numbers, "distill_batch": self.distill_batch})
        if not 0 < self.tflops < float("inf"):
            raise InputError(f"tflops is {self.tflops}; it must be a positive number")


def stages(config: ImagenetConfig) -> list[tuple[str, list[Stage]]]:
    """Every command: the trajectories, the students of Table 1, and their evaluation."""
    collect: dict[str, Any] = {
        "teacher": config.teacher_folder or "TEACHER",
        "num": config.num_trajectories,
        "num-teacher-steps": NUM_TEACHER_STEPS,
        "cfg-scale": 1.5,
        "cfg-channels": 3,
        "solver": Solver.DDIM,
        "states": "x_0_hat",
    }
    students = [_student_stage(line, config) for line in TABLE_1]
    return [
        ("trajectories", [Stage("trajectories", ("collect", *_words(collect), "--grid", *map(str, KEPT)))]),
        ("students", students),
        ("evaluation", [_evaluation_stage(stage, config) for stage in students]),
    ]


def imagenet_plan(out: Path, config: ImagenetConfig) -> dict[str, Any]:
    """What --dry-run shows: the commands, bytes on the disk, FLOPs and hours."""
    network = usual_network("DiT-XL/2")
    per_point = network.channels * network.latent_size**2 * BYTES_PER_VALUE
    costs = {"collect": config.num_trajectories * teacher_row(network, _ode()).cost.total}
    for line in TABLE_1:
        student = StudentConfig(num_steps=line.setting.num_steps, mask=line.setting.mask, history_blocks=line.blocks)
        updates = config.iterations * config.distill_batch * BACKWARD
        costs[_name(line)] = updates * student_row(network, student).cost.total
    flop = {name: 2.0 * macs for name, macs in costs.items()}
    weights = sum(parameter.numel() for parameter in _student_on_meta().parameters()) * 4
    checkpoints = len(TABLE_1) * weights * (KEPT_CHECKPOINTS * STATES_OF_A_CHECKPOINT + 1)
    hours = {name: round(cost / (config.tflops * 1e12) / 3600, 1) for name, cost in flop.items()}
    return {
        "storage_gb": round(config.num_trajectories * len(KEPT) * per_point / 1e9, 1),
        "checkpoints_gb": round(checkpoints / 1e9, 1),
        "flop": flop,
        "flop_total": sum(flop.values()),
        "tflops": config.tflops,
        "hours": hours,
        "hours_total": round(sum(hours.values()), 1),
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
    with only_worker(out):
        for name, group in stages(config):
            run_missing(out, group, device=device, jobs=1 if name == "trajectories" else jobs, title=name)
    write_atomically(out / "report.md", imagenet_report(out).encode())
    return out / "report.md"


def imagenet_report(out: Path) -> str:
    """Table 1 with the paper's numbers and ours, from the evaluations in `out`."""
    names = ("fid", "inception_score", "precision", "recall")
    header = ["method", "S", "N", *(f"paper: {name}" for name in names), *(f"ours: {name}" for name in names)]
    body = []
    for line in TABLE_1:
        ours = read_json(out / f"{_name(line)}.json")["metrics"]
        numbers = [f"{source[name]:.4g}" for source in (vars(line), ours) for name in names]
        body.append([line.method, str(line.setting.num_steps), str(line.blocks), *numbers])
    told = "\n".join(f"- {difference}" for difference in DIFFERENCES)
    return f"# ImageNet 256 x 256\n\n{as_markdown(header, body)}\n\nWhat differs from the authors' code:\n\n{told}\n"


def _check(config: ImagenetConfig, device: torch.device) -> None:
    """InputError when a file is not what its option asks for; a run of days should not end for that."""
    assert config.teacher_folder is not None  # noqa: S101 missing() has seen to it
    card, wanted = load_teacher_card(config.teacher_folder), usual_network("DiT-XL/2")
    if card.network != wanted or card.diffusion.kind is not DiffusionKind.VP:
        raise InputError(f"the teacher in {config.teacher_folder} is no DiT-XL/2 with DiT's diffusion at 256 x 256")
    find_autoencoder(config.vae, wanted.channels, config.teacher_folder)
    load_networks({"inception"}, Weights(inception=config.inception), device)
    if config.ref is not None:
        read_reference(config.ref)


def _student_on_meta() -> Student:
    """The student with a head per step, without memory."""
    with torch.device("meta"):
        config = StudentConfig(num_steps=4, history_blocks=0, mask=HistoryMask.DIAGONAL, per_step_heads=True)
        return Student(
            Transformer(usual_network("DiT-XL/2")), Diffusion(kind=DiffusionKind.VP), (4.0, 3.0, 2.0, 1.0, 0.0), config
        )


def _ode() -> Ode:
    """25 DDIM steps with guidance 1.5 on three of the four latent channels (Section 4.1; DiT's own guidance)."""
    times = Diffusion(kind=DiffusionKind.VP).teacher_times(NUM_TEACHER_STEPS)
    return Ode(times=times, solver=Solver.DDIM, guidance=Guidance(cfg_scale=1.5, cfg_channels=3))


def _student_stage(line: PaperRow, config: ImagenetConfig) -> Stage:
    options: dict[str, Any] = {
        "preset": "ard-x0",
        "trajectories": "OUT/trajectories",
        "mask": line.setting.mask,
        "history-blocks": line.blocks,
        "iterations": config.iterations,
        "batch-size": config.distill_batch,
        "learning-rate": 1e-4,
        "schedule": "constant",
        "warmup": 0,
        "beta2": 0.999,
        "ema-decay": 0.9999,
        "checkpoint-every": 10_000,
    }
    grid = map(str, GRIDS[line.setting.num_steps])
    return Stage(_name(line), ("distill", *_words(options), "--per-step-heads", "--grid", *grid))


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


def _name(line: PaperRow) -> str:
    num_steps, mask = line.setting.num_steps, line.setting.mask
    if line.blocks:
        return f"ard-s{num_steps}-{mask}-n{line.blocks}"
    return "kd" if num_steps == 1 else f"step-s{num_steps}"


def _words(options: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))
