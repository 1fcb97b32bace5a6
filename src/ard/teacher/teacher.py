"""The teacher: a trained network with its guidance, and its probability-flow ODE solved from noise to image."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ard.core.config import from_plain, later, to_plain
from ard.core.devices import float32_by_default
from ard.core.draws import normal
from ard.core.errors import InputError, require_at_most
from ard.core.files import followed
from ard.core.model_folder import StateDict, fingerprint, load_config, load_model, require_room, save_model
from ard.core.types import Latents, Times, Trajectory
from ard.diffusion.process import (
    Diffusion,
    DiffusionKind,
    Extrapolation,
    Sampler,
    Solver,
    check_solver,
    solver_output,
)
from ard.diffusion.spacing import TimeSpacing
from ard.networks.autoencoder import LatentScale
from ard.networks.condition import Condition, with_unconditional
from ard.networks.registry import build_network
from ard.networks.transformer import Backbone, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans, 2022): uncond + scale (cond - uncond)."""

    cfg_scale: float = 1.5
    """w, which multiplies (cond - uncond): 1 means no guidance."""
    cfg_channels: int | None = None
    """How many channels are guided, from the first on; -1 means all. None: as many as the teacher's own sampler guides,
    which is 3 of its 4 latent channels for DiT's, and all for a teacher that was trained here."""
    cfg_interval: tuple[float, float] | None = later(None)
    """LOW HIGH: guide only at times from LOW to HIGH (Kynkäänniemi et al., 2024), which costs one evaluation elsewhere.
    In the teacher's own time: 0 is the image; 1 for flow, and 1000 for VP, is noise. None: always."""

    def __post_init__(self) -> None:
        """Refuse an interval that is none."""
        low, high = self.cfg_interval or (0, 0)
        if not 0 <= low <= high < math.inf:
            raise InputError(f"cfg_interval is {low} {high}; two times from 0 on are needed, the lower one first")

    def guides_at(self, t: float) -> bool:
        """Whether the network runs twice at the time `t`. The interval's ends belong to it, give or take rounding."""
        if self.cfg_scale == 1 or self.cfg_interval is None:
            return self.cfg_scale != 1
        low, high = self.cfg_interval
        return low - _ROUNDING <= t <= high + _ROUNDING


_ROUNDING = 1e-6  # A time such as 1 - 7/10 is not quite 0.3, and in float32 another number again.


MAX_TIMES = 100_001


@dataclass(frozen=True, kw_only=True)
class Ode:
    """How the teacher's PF-ODE is solved; together with a teacher, a seed and a condition it decides a trajectory."""

    times: tuple[float, ...]
    """The teacher's own grid, noise first."""
    solver: Solver
    guidance: Guidance
    landings: tuple[float, ...] = later(())
    """Where each step lands, of a sampler whose steps do not land at the next of the times; empty where they do."""
    clip: float | None = later(None)
    """Clean estimates are cut to this range, -clip to clip, in every step; None: they are not."""

    def __post_init__(self) -> None:
        """Refuse times that do not fall from noise to image, and landings that are not one per step."""
        times = self.times
        require_at_most(MAX_TIMES, {"the number of times": len(times)})
        if len(times) < 2 or not (times[0] > times[-1] and all(a >= b for a, b in pairwise(times))):
            raise InputError(f"times {str(times)[:60]} must fall from noise to image")
        if self.landings and len(self.landings) != len(times) - 1:
            raise InputError(f"landings are {len(self.landings)}, and there are {len(times) - 1} steps")

    @property
    def steps(self) -> "list[tuple[float, float]]":
        """From where each step goes and where it lands."""
        return list(zip(self.times[:-1], self.landings or self.times[1:], strict=True))

    @property
    def num_teacher_steps(self) -> int:
        """Steps of the solver."""
        return len(self.times) - 1

    @property
    def nfe(self) -> int:
        """Network evaluations per image; guidance counts twice where it guides."""
        return sum(2 if self.guidance.guides_at(t) else 1 for t in self.evaluated)

    @property
    def evaluated(self) -> tuple[float, ...]:
        """The times at which the solver asks the network."""
        return self.times[:-1] + (self.times[1:] if self.solver is Solver.HEUN else ())


@dataclass(frozen=True, kw_only=True)
class TeacherRef:
    """Which teacher an artefact comes from."""

    hash: str
    path: str
    """Where the teacher's folder is, seen from the artefact's."""
    data: str | None

    def folder(self, artefact: Path) -> Path:
        """The teacher's folder, for an artefact in the folder `artefact`."""
        return followed(self.path, seen_from=artefact)


@dataclass(frozen=True)
class Teacher:
    """A network that predicts eps or v, its diffusion, the data it was trained on and its identity."""

    network: Backbone
    diffusion: Diffusion
    data: str | None
    """The name of the data set; None for an imported teacher."""
    hash: str
    cfg_channels: int = -1
    """How many channels its own sampler guides; -1 means all."""
    imported: "Imported | None" = None
    """Where it comes from; None for one that was trained here."""

    @property
    def latents(self) -> LatentScale | None:
        """How its latents are scaled; None where it makes pictures, or does not say."""
        return self.imported.scale if self.imported else None

    def guided_channels(self, guidance: Guidance) -> int:
        """How many channels `guidance` guides, or -1 for all."""
        return self.cfg_channels if guidance.cfg_channels is None else guidance.cfg_channels

    def denoise(self, condition: Condition, guidance: Guidance) -> Callable[[Latents, Times], Latents]:
        """The guided prediction as a function of (x, t). Both halves of the guidance run as one batch.

        With an interval all rows have one time.
        """
        if guidance.cfg_scale == 1:
            return lambda x, t: self._predict(x, t, condition)
        both = with_unconditional(condition, num_classes=self.network.config.num_classes)
        guided_channels = self.guided_channels(guidance)
        channels = guided_channels if guided_channels >= 0 else self.network.config.channels

        def guided(x: Latents, t: Times) -> Latents:
            if guidance.cfg_interval and not guidance.guides_at(float(t[0])):  # Waits for a GPU, once per step.
                return self._predict(x, t, condition)
            cond, uncond = self._predict(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            mixed = torch.lerp(uncond, cond, guidance.cfg_scale)
            return torch.cat([mixed[:, :channels], cond[:, channels:]], dim=1)

        return guided

    def _predict(self, x: Latents, t: Times, condition: Condition) -> Latents:
        """In the network's precision; the state and the result keep theirs."""
        dtype = next(self.network.parameters()).dtype
        return self.network(x.to(dtype), self.diffusion.network_time(t), condition).to(x.dtype)


class Solution(NamedTuple):
    """The kept points of a solved ODE, noise first: its states, and the clean estimates of the steps that end there."""

    x_t: Trajectory
    x_0_hat: Trajectory


@torch.no_grad()
def solve_pf_ode(
    teacher: Teacher,
    noise: Latents,
    condition: Condition,
    *,
    ode: Ode,
    kept: tuple[int, ...],
) -> Solution:
    """Solve the PF-ODE (Eq. 2) from `noise` and keep the points whose indices in the teacher's grid are `kept`.

    The state has the dtype of `noise`: float32 unless a test asks for more.
    """
    denoise, diffusion = teacher.denoise(condition, ode.guidance), teacher.diffusion
    extrapolate = Extrapolation(diffusion)
    x = noise
    states, estimates = [noise], [noise]
    for step, (start, end) in enumerate(ode.steps):
        t, t_next = (torch.full_like(noise[:, 0, 0, 0], value) for value in (start, end))
        output = solver_output(denoise, diffusion, x, t, t_next, solver=ode.solver)
        if ode.solver is Solver.DPMPP_2M:
            output = extrapolate(x, output, t, t_next)
        estimate, noise_hat = diffusion.split(x, output, t)
        if ode.clip is not None:
            estimate = estimate.clamp(-ode.clip, ode.clip)
        x = diffusion.add_noise(estimate, noise_hat, t_next)
        if step + 1 in kept:
            states.append(x)
            estimates.append(estimate)
    return Solution(torch.stack(states, dim=1), torch.stack(estimates, dim=1))


def noise_for_seeds(seeds: range | Tensor, shape: tuple[int, int, int]) -> Latents:
    """Initial noise, one generator per seed: a sample is its seed, whatever batch it comes in."""
    rows = [normal(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows)


class SourceFormat(StrEnum):
    """In which published form an imported teacher was found."""

    DIT = "dit"  # A checkpoint of DiT's own code (Peebles and Xie, 2023).
    SIT = "sit"  # Of SiT's (Ma et al., 2024).
    REPA = "repa"  # Of REPA's (Yu et al., 2025).
    PIXART = "pixart"  # Of PixArt's (Chen et al., 2023 and 2024).
    DIFFUSERS = "diffusers"  # A folder that diffusers saved.
    OTHER = "other"  # Of another architecture, written by the code that brings it (docs/add-your-teacher.md).


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Where an imported teacher comes from, and what it brings besides its network and its diffusion."""

    format: SourceFormat
    source: str
    """The name of the file or folder."""
    cfg_channels: int
    """How many channels its own sampler guides; -1 means all."""
    dropped: tuple[str, ...]
    """Tensors of the source that the network has no use for."""
    scaling_factor: float | None
    """Its latents are this times the autoencoder's; None where it makes pictures itself, or the source does not say."""
    vae: str | None
    """Where the source's own autoencoder is, seen from the teacher's folder."""
    class_names: tuple[str, ...]
    """By label; empty where the source has none."""
    shift_factor: float | None = later(None)
    """What is subtracted from the autoencoder's output before it is scaled; None: nothing."""
    max_tokens: int | None = later(None)
    """How many tokens of a prompt its pipeline reads; None where the source does not say, or has classes."""
    notes: tuple[str, ...] = later(())
    """What was taken, stripped, assumed or left, in lines for people."""

    @property
    def scale(self) -> LatentScale | None:
        """How its latents are scaled; None where the source does not say."""
        if self.scaling_factor is None:
            return None
        return LatentScale(scaling_factor=self.scaling_factor, shift_factor=self.shift_factor or 0.0)


@dataclass(frozen=True, kw_only=True)
class TeacherCard:
    """What a teacher's folder says of it: how it was trained here, or from where it was imported."""

    network: TransformerConfig
    diffusion: Diffusion
    data: str | None = later(None)
    iterations: int | None = later(None)
    seed: int | None = later(None)
    seconds: float | None = later(None)
    """Training time."""
    imported: Imported | None = later(None)

    def __post_init__(self) -> None:
        """Refuse a card that tells of both or of neither."""
        training = {name: getattr(self, name) for name in ("data", "iterations", "seed", "seconds")}
        if wrong := [name for name, value in training.items() if (value is None) == (self.imported is None)]:
            told = "an imported teacher has no" if self.imported else "a teacher that was not imported has its"
            raise InputError(f"{told} {', '.join(wrong)}")


def save_teacher(folder: Path, card: TeacherCard, weights: StateDict) -> None:
    """Publish a teacher folder."""
    save_model(folder, "teacher", to_plain(card), weights)


def load_teacher_card(folder: Path) -> TeacherCard:
    """What the teacher in `folder` is; InputError when there is none."""
    return from_plain(TeacherCard, load_config(folder, "teacher"), where=str(folder / "config.json"))


@float32_by_default()
def load_teacher(folder: Path, device: torch.device) -> Teacher:
    """The teacher in `folder`, in evaluation mode; InputError when there is none."""
    card = load_teacher_card(folder)
    require_room(folder, depth=card.network.depth, width=card.network.width)
    network = build_network(card.network).eval().requires_grad_(False)
    load_model(network, folder)
    identity = teacher_hash(card, network.state_dict())
    cfg_channels = card.imported.cfg_channels if card.imported else -1
    return Teacher(network.to(device), card.diffusion, card.data, identity, cfg_channels, card.imported)


def teacher_hash(card: TeacherCard, weights: StateDict) -> str:
    """A teacher's identity: its network, its diffusion and its weights."""
    return fingerprint(to_plain([card.network, card.diffusion]), weights)


def stored_hash(folder: Path) -> str:
    """The identity of the teacher in `folder`."""
    return load_teacher(folder, torch.device("cpu")).hash


def plan_ode(
    teacher: Teacher,
    *,
    num_teacher_steps: int,
    guidance: Guidance,
    solver: Solver | None = None,
    spacing: TimeSpacing | None = None,
) -> Ode:
    """An evenly spaced solver run for `teacher`; InputError when an option does not fit it.

    Without `solver` and `spacing` it is the teacher's own sampler. With another solver VP's times are the teacher's own
    too, and for DPMPP_2M even in lambda, where it is at its best.
    """
    solver = solver or teacher.diffusion.default_solver
    check_solver(teacher.diffusion, solver)
    channels = teacher.network.config.channels
    if not 1 <= guidance.cfg_scale < math.inf:
        raise InputError(
            f"cfg_scale is {guidance.cfg_scale}; it multiplies (cond - uncond), so 1 means none: at least 1"
        )
    _require_null_class(teacher.network.config, guidance)
    guided_channels = teacher.guided_channels(guidance)
    if not -1 <= guided_channels <= channels:
        raise InputError(f"cfg_channels is {guided_channels}; the latents have {channels}: 0 to {channels}, or -1")
    diffusion = _as_sampled(teacher.diffusion, solver, spacing)
    times = diffusion.teacher_times(num_teacher_steps)
    ode = Ode(
        times=times,
        solver=solver,
        guidance=replace(guidance, cfg_channels=guided_channels),
        landings=diffusion.landings(times),
        clip=diffusion.sampler.clip,
    )
    _check_interval(ode, teacher.diffusion)
    return ode


def _require_null_class(network: TransformerConfig, guidance: Guidance) -> None:
    """InputError for guidance of a teacher that does not know what to subtract."""
    if guidance.cfg_scale != 1 and not (network.null_class or network.text):
        raise InputError(
            f"cfg_scale is {guidance.cfg_scale:g}, and the teacher was trained without a row for no class, so that it "
            "cannot be guided; give --cfg-scale 1"
        )


def _as_sampled(diffusion: Diffusion, solver: Solver, spacing: TimeSpacing | None) -> Diffusion:
    """`diffusion` with the sampler of a solver run: its own where neither option asks for another.

    InputError for a spacing where there is none to choose.
    """
    if diffusion.kind is DiffusionKind.FLOW:
        if spacing:
            raise InputError(f"spacing is {spacing}, and a flow teacher's times are its own; leave it out")
        return diffusion
    if spacing is TimeSpacing.FLOW_MATCH:
        raise InputError(f"spacing is {spacing}, which is for flow teachers; choose another")
    if solver is diffusion.default_solver and spacing in {None, diffusion.spacing}:
        return diffusion
    own = TimeSpacing.LOG_SNR if solver is Solver.DPMPP_2M else diffusion.spacing
    return replace(diffusion, spacing=spacing or own, sampler=Sampler(solver=solver))


def _check_interval(ode: Ode, diffusion: Diffusion) -> None:
    """InputError for an interval that does nothing, which was hardly meant."""
    guidance, interval = ode.guidance, ode.guidance.cfg_interval
    if interval is None:
        return
    told = f"cfg_interval is {interval[0]:g} {interval[1]:g}"
    if guidance.cfg_scale == 1:
        raise InputError(f"{told}, and cfg_scale is 1, which guides nowhere; leave out one of them")
    if not any(map(guidance.guides_at, ode.evaluated)):
        raise InputError(f"{told}: no step of the solver lies there; times run from {diffusion.max_time:g} to 0")


def reference_to(teacher: Teacher, folder: Path, *, seen_from: Path) -> TeacherRef:
    """The reference that an artefact in `seen_from` keeps to the teacher in `folder`."""
    return TeacherRef(hash=teacher.hash, path=os.path.relpath(folder.resolve(), seen_from.resolve()), data=teacher.data)
