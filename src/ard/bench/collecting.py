"""The guided teacher as `ard collect` can be told to run it, each way a contender."""

from collections.abc import Sequence

import torch

from ard.analysis.flops import teacher_row
from ard.bench.contenders import DIFFUSION, Batch, Contender
from ard.core.devices import Precision
from ard.core.errors import InputError
from ard.networks.transformer import Transformer
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode
from ard.trajectories.execution import Execution, executed

INTERVAL = (0.25, 0.75)
EAGER, COMPILED, BF16, WITH_INTERVAL = "eager", "compiled", "bf16", "interval"
NAMES = f"{EAGER}, and {COMPILED}, {BF16}, {WITH_INTERVAL} or several of them such as {BF16}-{COMPILED}"


def ways(names: Sequence[str], network: Transformer, batch: Batch, *, num_teacher_steps: int) -> list[Contender]:
    """The teacher run in the ways called `names`; InputError for a name that none has."""
    return [_way(name, network, batch, num_teacher_steps) for name in names]


def _way(name: str, network: Transformer, batch: Batch, num_teacher_steps: int) -> Contender:
    words = name.split("-")
    if name != EAGER and not (set(words) <= {COMPILED, BF16, WITH_INTERVAL} and len(set(words)) == len(words)):
        raise InputError(f"--ways: unknown way {name!r}; allowed: {NAMES}")
    execution = Execution(precision=Precision.BF16 if BF16 in words else Precision.FP32, compile=COMPILED in words)
    eager = Teacher(network, DIFFUSION, "none", "random")
    guidance = Guidance(cfg_interval=INTERVAL if WITH_INTERVAL in words else None)
    teacher = executed(eager, execution)
    ode = plan_ode(teacher, num_teacher_steps=num_teacher_steps, guidance=guidance)

    def run() -> torch.Tensor:
        return solve_pf_ode(teacher, batch.noise, batch.label, ode=ode, kept=(num_teacher_steps,)).x_t[:, -1]

    macs = teacher_row(network.config, ode).cost.total
    return Contender(name=name, macs=macs, run=run, equals=EAGER if name == COMPILED else None)
