"""What a whole run costs: bytes on the disk, FLOP of collecting, training and sampling, and the memory of an update.

One multiply-accumulate is two FLOP. A backward pass costs two forward passes, of frozen weights one.
"""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ard.analysis.flops import forward_macs, student_row, teacher_row
from ard.analysis.memory import Memory, num_parameters, update_memory
from ard.networks.discriminator import DiscriminatorConfig
from ard.networks.transformer import TransformerConfig
from ard.presets import DISCRIMINATORS, Preset
from ard.student.student import StudentConfig
from ard.teacher.teacher import Ode
from ard.training.loop import TrainConfig

ROUNDS = 10  # Products that are timed.
TFLOPS = 400.0
"""10^12 FLOP/s at which hours are computed: about 40 % of what an H100 or H200 does in bf16 at most."""
FLOP_PER_MAC = 2
UPDATE_PASSES = 3  # Forward and backward.
STATES_OF_A_CHECKPOINT = 4  # Weights, their average, and AdamW's two moments, in float32.
KERNEL_AREA = 9  # A head's convolution joins 9 tokens, in a row or in a square.
HEAD_PASSES = 9  # Real and fake for the student's term and again for the heads' own update, and their backward passes.
FEATURE_PASSES = 3  # The frozen teacher on real and on fake samples, and back to the fake ones.
ASSUMPTIONS = (
    "FLOP: matrix products only, two per multiply-accumulate; a backward pass is two forward passes",
    "hours: FLOP at the stated rate, on one device; reading, decoding and evaluating are not in them",
    "memory: float32 weights, gradients, AdamW's moments and average, and the tensors that autograd keeps of all steps",
    "memory: one pass's, where --accumulate cuts an update into several",
    "memory: not in it are workspaces, and what a discriminator, a frozen teacher and the pool of --online hold",
    "--lora-rank: FLOP and activations are those of training all weights",
    "checkpointed: each block keeps its input only and is computed again, for a third more FLOP",
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run computes and stores."""

    network: TransformerConfig
    student: StudentConfig
    """With N filled in."""
    ode: Ode
    num: int
    """Trajectories."""
    points: int
    """Stored points of each."""
    kinds: int
    """Kinds of state that are stored of each point."""
    train: TrainConfig
    bytes_per_value: int = 2
    trained: int | None = None
    """How many parameters are trained; None: all."""
    heads: DiscriminatorConfig | None = None
    """The discriminator's, where the loss is R + D."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run costs."""

    store_bytes: int
    run_bytes: int
    """The checkpoints that stay and the published weights."""
    collect_flop: float
    distill_flop: float
    sample_flop: float
    """One image."""
    float32: Memory
    bf16: Memory

    def plain(self, tflops: float) -> dict[str, Any]:
        """As JSON: bytes, FLOP, and hours at `tflops` 10^12 FLOP/s."""
        flop = {"collect": self.collect_flop, "distill": self.distill_flop, "sample": self.sample_flop}
        return {
            "store_bytes": self.store_bytes,
            "run_bytes": self.run_bytes,
            "flop": flop,
            "tflops": tflops,
            "hours": {name: float(f"{hours(flop[name], tflops):.2g}") for name in ("collect", "distill")},
            "memory_bytes": {"float32": memory_plain(self.float32), "bf16": memory_plain(self.bf16)},
            "assumptions": ASSUMPTIONS,
        }


def budget(work: Workload) -> Budget:
    """The costs of a run, from its configuration."""
    student, batch = work.student, work.train.batch_size
    memory = partial(update_memory, work.network, student, batch=work.train.pass_size, trained=work.trained)
    return Budget(
        store_bytes=store_bytes(work),
        run_bytes=run_bytes(work),
        collect_flop=float(FLOP_PER_MAC * work.num * teacher_row(work.network, work.ode).cost.total),
        distill_flop=float(FLOP_PER_MAC * work.train.iterations * batch * update_macs(work)),
        sample_flop=float(FLOP_PER_MAC * student_row(work.network, student).cost.total),
        float32=memory(bf16=False),
        bf16=memory(bf16=True),
    )


def run_bytes(work: Workload) -> int:
    """The published weights, and the checkpoints that are there at the end."""
    made = math.ceil(work.train.iterations / work.train.checkpoint_every)
    kept = min(made, work.train.keep_checkpoints) if work.train.keep_checkpoints else made
    published = num_parameters(work.network, work.student)
    trained = published if work.trained is None else work.trained
    return 4 * (STATES_OF_A_CHECKPOINT * kept * trained + published)


def store_bytes(work: Workload) -> int:
    """The trajectories' states; headers, seeds and labels are less than a thousandth of that."""
    per_point = work.network.channels * work.network.latent_size**2 * work.bytes_per_value
    return work.num * work.points * work.kinds * per_point


def update_macs(work: Workload) -> int:
    """Multiply-accumulates of an update per trajectory: the student's, and a discriminator's without its penalty."""
    macs = UPDATE_PASSES * student_row(work.network, work.student).cost.total
    if work.heads is None:
        return macs
    part = (max(work.heads.blocks(work.network.depth)) + 1) / work.network.depth  # Blocks above are not computed.
    features = FEATURE_PASSES * forward_macs(work.network)
    return macs + round(features * part) + HEAD_PASSES * head_macs(work.heads, work.network)


def head_macs(heads: DiscriminatorConfig, network: TransformerConfig) -> int:
    """Multiply-accumulates of all heads for one latent: two convolutions, one to few values, and the projection."""
    width, tokens = network.width, network.num_tokens
    per_token = width**2 * (1 + KERNEL_AREA) + width * heads.head_width
    return len(heads.blocks(network.depth)) * (tokens * per_token + width * heads.head_width)


def memory_plain(memory: Memory) -> dict[str, int]:
    """Bytes by part, and their sums."""
    return {**asdict(memory), "total": memory.total, "total_checkpointed": memory.total_checkpointed}


def hours(flop: float, tflops: float) -> float:
    """How long `flop` take at `tflops` 10^12 FLOP/s."""
    return flop / (tflops * 1e12) / 3600


def usual_tflops(device: torch.device) -> float:
    """The rate at which hours are computed, in 10^12 FLOP/s: of a CPU what its matrix products reach just now.

    Of other devices it is `TFLOPS`, a large GPU's.
    """
    if device.type != "cpu":
        return TFLOPS
    matrix = torch.ones(768, 768)
    torch.mm(matrix, matrix)  # The first one is slower.
    start = time.perf_counter()
    for _ in range(ROUNDS):
        torch.mm(matrix, matrix)
    rate = ROUNDS * FLOP_PER_MAC * len(matrix) ** 3 / (time.perf_counter() - start) / 1e12
    return float(f"{rate:.2g}")


def preset_workload(preset: Preset, network: TransformerConfig) -> Workload:
    """What a preset's last stage computes and stores, with the teacher `network`; InputError when it does not fit."""
    student = student_row(network, preset.whole_student).student
    assert student is not None  # noqa: S101 a student's row has one
    collect = preset.collect
    return Workload(
        network=network,
        student=student,
        ode=collect.ode(preset.teacher.diffusion),
        num=collect.num,
        points=len(collect.kept),
        kinds=len(collect.states),
        train=preset.train,
        heads=DISCRIMINATORS[preset.discriminator].heads if preset.adversarial else None,
    )
