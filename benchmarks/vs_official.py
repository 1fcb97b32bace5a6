"""Our student against the authors' re-implementation: the same weights, equal outputs first, interleaved rounds.

    git clone https://github.com/alsdudrla10/ARD official
    python benchmarks/vs_official.py official --model DiT-XL/2 --batch 1
    python benchmarks/vs_official.py official --model DiT-S/2 --train --batch 4
    python benchmarks/vs_official.py official --model DiT-XL/2 --batch 1,128 --compile --device cuda

Their code is read from the folder that you name and is no part of this project; its licence is not ours. It has four
steps, M4, one output layer per step and x_0_hat states, so that is what our student has too. On a GPU theirs runs in
TF32, as it comes, and ours in bf16. Weights are random.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ard.analysis.flops import student_row, usual_network
from ard.analysis.latency import machine_facts
from ard.bench.ceilings import best_flops
from ard.bench.contenders import Batch, random_batch, random_network
from ard.bench.measure import Timed, measure_rows, plain_rows, rows_table
from ard.bench.training import update_macs
from ard.cli.bench.common import ceilings_for, parse_batches
from ard.core.devices import autocast, resolve_device
from ard.core.errors import InputError
from ard.core.files import write_json
from ard.diffusion.process import Diffusion
from ard.methods.losses import regression_loss
from ard.networks.drawing import draw
from ard.networks.transformer import TransformerConfig
from ard.reporting.table import as_text
from ard.student.fast_sampling import Speed, drawing
from ard.student.history import HistoryAttention
from ard.student.student import Prediction, StateKind, Student, StudentConfig
from ard.training.state import new_state

NUM_STEPS = 4
LAST_TIME = 999  # Theirs of the noise; the others are three, two and one quarters of it.
TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}


class _Mlp(nn.Module):
    """What timm's Mlp is here: two linear layers around the activation that is given."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Callable[[], nn.Module], drop: float) -> None:
        super().__init__()
        assert drop == 0  # noqa: S101
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Per token."""
        return self.fc2(self.act(self.fc1(x)))


class _PatchEmbed(nn.Module):
    """What timm's PatchEmbed is here: a convolution whose outputs are tokens."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=bias)
        self.patch_size = (patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Patches row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


def official_models(folder: Path) -> ModuleType:
    """Their models_ARD.py. timm, which it imports two layers from, may be missing."""
    if not (folder / "models_ARD.py").is_file():
        raise InputError(f"{folder} has no models_ARD.py; name a clone of github.com/alsdudrla10/ARD")
    try:
        importlib.import_module("timm.models.vision_transformer")
    except ImportError:
        names = ("timm", "timm.models", "timm.models.vision_transformer")
        modules = {name: ModuleType(name) for name in names}
        modules[names[2]].__dict__.update({"Mlp": _Mlp, "PatchEmbed": _PatchEmbed})
        sys.modules.update(modules)
    sys.path.insert(0, str(folder.resolve()))
    return importlib.import_module("models_ARD")


def make_student(config: TransformerConfig, history_blocks: int, device: torch.device) -> Student:
    """A student of their design with random weights."""
    design = StudentConfig(
        num_steps=NUM_STEPS,
        history_blocks=history_blocks,
        history=HistoryAttention.SHARED,
        prediction=Prediction.NEXT_STATE,
        state=StateKind.X_0_HAT,
        per_step_heads=True,
    )
    diffusion = Diffusion(num_train_steps=LAST_TIME)
    tau = tuple(1 - step / NUM_STEPS for step in range(NUM_STEPS + 1))
    student = Student(random_network(config, device), diffusion, tau, design)
    generator = torch.Generator().manual_seed(2)
    for parameter in student.step_heads.parameters():
        draw(parameter, partial(nn.init.normal_, std=parameter.shape[-1] ** -0.5, generator=generator))
    return student.to(device).eval().requires_grad_(False)


def official_weights(student: Student) -> dict[str, Tensor]:
    """A student's weights under their names: patches are a convolution, and the steps' heads have numbers."""
    config, network = student.network.config, student.network.state_dict()
    weights = {name: value for name, value in network.items() if not name.startswith("final_layer.")}
    patches = weights.pop("x_embedder.weight")
    side = config.patch_size
    weights["x_embedder.proj.weight"] = patches.view(-1, config.channels, side, side)
    weights["x_embedder.proj.bias"] = weights.pop("x_embedder.bias")
    weights["pos_embed"] = student.network.pos_embed.unsqueeze(0)
    for number, head in enumerate(student.step_heads, start=1):
        prefix = "final_layer" if number == 1 else f"final_layer{number}"
        weights |= {f"{prefix}.{name}": value for name, value in head.state_dict().items()}
    return weights


def official_network(models: ModuleType, student: Student) -> Any:
    """Theirs with the student's weights."""
    config = student.network.config
    network = models.DiT(
        input_size=config.latent_size,
        patch_size=config.patch_size,
        in_channels=config.channels,
        hidden_size=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
    )
    network.load_state_dict(official_weights(student))
    return network.to(student.tau.device).eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two, and what they are given."""

    student: Student
    official: Any
    batch: Batch

    @property
    def time(self) -> Tensor:
        """Their time of the noise, for each image."""
        return torch.full((len(self.batch.label),), float(LAST_TIME), device=self.batch.noise.device)

    def infer(self) -> Tensor:
        """Their sampling: the last of the four predictions."""
        network, blocks = self.official, self.student.config.history_blocks
        return network.infer(self.batch.noise, self.time, blocks, self.batch.label)[-1]

    def forward(self, states: Tensor) -> Tensor:
        """Their training's forward pass on four states."""
        blocks = self.student.config.history_blocks
        given = [states[:, step] for step in reversed(range(NUM_STEPS))]
        outputs = self.official(*given, self.time, blocks, self.batch.label)
        return torch.stack([one[:, : states.shape[2]] for one in outputs], dim=1)


def sampling(pair: Pair, *, compiled: bool) -> list[Timed]:
    """Their infer, and our sampler at each speed; InputError when they draw different images."""
    device, size = pair.batch.noise.device, len(pair.batch.label)
    macs = student_row(pair.student.network.config, pair.student.config).cost.total * size
    runs: dict[str, Callable[[], Tensor]] = {"official infer": pair.infer}
    for speed in Speed if compiled else (Speed.REFERENCE, Speed.FAST):
        draw = drawing(pair.student, speed)
        runs[f"ours, {speed}"] = lambda draw=draw: draw(pair.batch.noise, pair.batch.label)
    wanted = pair.infer()
    for name, run in runs.items():
        _require_close(name, run(), wanted, device)
    return [Timed(name=name, batch=size, run=run, macs=macs) for name, run in runs.items()]


def training(pair: Pair) -> list[Timed]:
    """An update of each: forward, loss, backward, clip, AdamW, EMA; theirs averages parameter by parameter."""
    device, size = pair.batch.noise.device, len(pair.batch.label)
    generator = torch.Generator().manual_seed(3)
    later = torch.randn((size, NUM_STEPS, *pair.batch.noise.shape[1:]), generator=generator).to(device)
    states = torch.cat([pair.batch.noise.unsqueeze(1), later], dim=1)
    with torch.no_grad():
        _require_close("training", pair.student(states[:, :-1], pair.batch.label), pair.forward(states[:, :-1]), device)
    macs = update_macs(pair.student.config, pair.student.network) * size
    runs = {"official update": _their_update(pair, states), "our update": _our_update(pair, states)}
    return [Timed(name=name, batch=size, run=run, macs=macs) for name, run in runs.items()]


def _require_close(name: str, given: Tensor, wanted: Tensor, device: torch.device) -> None:
    off = float((given - wanted).abs().max() / wanted.abs().max())
    print(f"{name}: differs from theirs by {off:.1e} of the largest value")
    if off > TOLERANCE[device.type]:
        raise InputError(f"{name} and theirs differ by {off:.1e}: nothing is timed")


def _their_update(pair: Pair, states: Tensor) -> Callable[[], Tensor]:
    network = pair.official.requires_grad_(True)
    optimiser = AdamW(network.parameters(), 1e-4, weight_decay=0)
    average = [parameter.detach().clone() for parameter in network.parameters()]

    def run() -> Tensor:
        loss = regression_loss(pair.forward(states[:, :-1]), states[:, 1:]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        for kept, parameter in zip(average, network.parameters(), strict=True):
            kept.mul_(0.9999).add_(parameter.data, alpha=1e-4)
        return torch.tensor(loss.item())  # Read in every step, as theirs is.

    return run


def _our_update(pair: Pair, states: Tensor) -> Callable[[], Tensor]:
    student = pair.student.requires_grad_(True)
    optimiser = AdamW(student.parameters(), 1e-4, weight_decay=0, fused=True)
    state, parameters = new_state(student, optimiser), list(student.parameters())

    def run() -> Tensor:
        with autocast(states.device):
            x_hat = student(states[:, :-1], pair.batch.label)
        loss = regression_loss(x_hat.float(), states[:, 1:]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimiser.step()
        state.average_weights(0.9999)
        return loss.detach()

    return run


def main(arguments: list[str] | None = None) -> None:
    """Load, check, time, print."""
    options = parsed(arguments)
    device, batches = resolve_device(options.device), parse_batches(options.batch)
    models = official_models(options.official)
    torch.backends.cuda.matmul.allow_tf32 = True  # Their default.
    config = replace(usual_network(options.model), learn_sigma=True)
    timed: list[Timed] = []
    for size in batches:
        student = make_student(config, options.history_blocks, device)
        batch = random_batch(config, size, device)
        pair = Pair(student=student, official=official_network(models, student), batch=batch)
        timed += training(pair) if options.train else sampling(pair, compiled=options.compile)
    tokens = [size * (NUM_STEPS if options.train else 1) for size in batches]
    flops = best_flops(ceilings_for(config, tokens, device))
    rows = measure_rows(timed, flops=flops, rounds=options.rounds, device=device)
    print(as_text(*rows_table(rows)))
    for row in rows:
        theirs = next(one for one in rows if one.batch == row.batch and one.model.startswith("official"))
        if row is not theirs:
            print(f"{theirs.model} / {row.model}, batch {row.batch}: {theirs.median_ms / row.median_ms:.2f}")
    if options.json:
        write_json(options.json, {"machine": machine_facts(device), "rows": plain_rows(rows)})


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path, metavar="PATH", help="a clone of the authors' repository")
    parser.add_argument("--model", default="DiT-S/2")
    parser.add_argument("--batch", default="1", help="one or more, such as 1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--history-blocks", type=int, default=6)
    parser.add_argument("--train", action="store_true", help="time updates instead of sampling")
    parser.add_argument("--compile", action="store_true", help="also our compiled sampler")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
