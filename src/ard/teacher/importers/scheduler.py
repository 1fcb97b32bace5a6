"""diffusers' schedulers as our diffusion: the noise process of a pipeline, and its sampler as far as we have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ard.core.errors import InputError
from ard.core.files import read_json
from ard.diffusion.process import Diffusion, DiffusionKind, Sampler, Solver
from ard.diffusion.spacing import TimeSpacing
from ard.diffusion.vp_table import BetaSchedule
from ard.teacher.importers.settings import read_settings, require

DDIM, DDPM, PNDM = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler"
DPM, EULER = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"
EULER_SDE, FLOW = "EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"
CLASSES = (DDIM, DDPM, PNDM, DPM, EULER, EULER_SDE, FLOW)
STRIDING = {DDIM, DDPM, PNDM}  # Their steps land a whole stride below, wherever the next time is.
DEFAULTS: dict[str, dict[str, Any]] = {  # Of diffusers, where a class has others than `_Settings`.
    DDIM: {"timestep_spacing": "leading", "clip_sample": True},
    DDPM: {"timestep_spacing": "leading", "clip_sample": True},
    PNDM: {"timestep_spacing": "leading", "set_alpha_to_one": False},
}
SPACINGS = {  # Where a scheduler's word for a spacing means another one than ours.
    (DPM, "linspace"): TimeSpacing.LINSPACE_OPEN,
    (DPM, "leading"): TimeSpacing.LEADING_OPEN,
    (EULER, "linspace"): TimeSpacing.LINSPACE_EXACT,
    (EULER_SDE, "linspace"): TimeSpacing.LINSPACE_EXACT,
}
SIGMAS = {  # Fields that ask for other times.
    "use_karras_sigmas": TimeSpacing.KARRAS,
    "use_exponential_sigmas": TimeSpacing.EXPONENTIAL,
    "use_lu_lambdas": TimeSpacing.EXPONENTIAL,
}
NOISY = {DDPM: "new noise in every step", EULER_SDE: "new noise in every step", PNDM: "its steps of fourth order"}
# Fields that our solvers have no counterpart for, with the values at which they ask for nothing.
NOT_TAKEN: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (1, 2),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None, 0),
    "stochastic_sampling": (False,),
}


class Schedule(NamedTuple):
    """A noise process with its sampler, and what people are told of it."""

    diffusion: Diffusion
    notes: tuple[str, ...]


DITS_OWN = Schedule(Diffusion(kind=DiffusionKind.VP), ())


def read_scheduler(path: Path) -> Schedule:
    """The scheduler in a scheduler_config.json; InputError for a noise process that is not read."""
    plain = read_json(path)
    require(f"{path}: _class_name", name := plain.get("_class_name"), CLASSES)
    if plain.get("trained_betas") is not None:
        raise InputError(f"{path}: trained_betas has betas of its own; allowed: None, with a beta_schedule")
    known = read_settings(_Settings, path, CLASSES, DEFAULTS.get(str(name), {}))
    return Schedule(_diffusion(str(name), known), tuple(_notes(str(name), known, plain)))


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What is read of a scheduler's scheduler_config.json, with diffusers' most frequent defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = BetaSchedule.LINEAR
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    shift: float = 1.0
    rescale_betas_zero_snr: bool = False
    invert_sigmas: bool = False

    def __post_init__(self) -> None:
        """Refuse another noise process and another prediction."""
        require("prediction_type", self.prediction_type, ("epsilon",))
        require("timestep_spacing", self.timestep_spacing, ("linspace", "leading", "trailing"))
        require("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))
        require("rescale_betas_zero_snr", self.rescale_betas_zero_snr, (False,))
        require("invert_sigmas", self.invert_sigmas, (False,))


def _diffusion(name: str, known: _Settings) -> Diffusion:
    if name == FLOW:
        return Diffusion(
            kind=DiffusionKind.FLOW,
            num_train_steps=known.num_train_timesteps,
            spacing=TimeSpacing.FLOW_MATCH,
            sampler=Sampler(shift=known.shift),
        )
    asked = [spacing for field, spacing in SIGMAS.items() if getattr(known, field)]
    own = SPACINGS.get((name, known.timestep_spacing)) or TimeSpacing(known.timestep_spacing)
    return Diffusion(
        kind=DiffusionKind.VP,
        num_train_steps=known.num_train_timesteps,
        beta_start=known.beta_start,
        beta_end=known.beta_end,
        beta_schedule=known.beta_schedule,
        spacing=asked[0] if asked else own,
        sampler=_sampler(name, known),
    )


def _sampler(name: str, known: _Settings) -> Sampler:
    ends_early = not known.set_alpha_to_one if name in STRIDING else known.final_sigmas_type == "sigma_min"
    return Sampler(
        solver=Solver.DPMPP_2M if name == DPM and known.solver_order > 1 else None,
        steps_offset=known.steps_offset if known.timestep_spacing == "leading" else 0,
        strides=name in STRIDING and known.timestep_spacing != "leading",
        last_time=int(ends_early),
        clip=known.clip_sample_range if name in STRIDING and known.clip_sample else None,
    )


def _notes(name: str, known: _Settings, plain: Mapping[str, Any]) -> list[str]:
    """What is taken over that may surprise, and in one line what is not."""
    notes = []
    if name in {DDIM, DDPM} and known.clip_sample:
        notes.append(f"scheduler: clip_sample cuts each clean estimate to ±{known.clip_sample_range:g}, here too")
    if name == DPM and (asked := [field for field in SIGMAS if getattr(known, field)]):
        notes.append(
            f"scheduler: {asked[0]} is taken over, but {name} feeds its network rounded times and ours is fed those of "
            "its sigmas: up to .3 % of the latents on a small network; --check measures it on this one"
        )
    left = [NOISY[name]] if name in NOISY else []
    left += [f"{field} {plain[field]!r:.40}" for field, harmless in NOT_TAKEN.items() if _asks(plain, field, harmless)]
    if left:
        diffusion = _diffusion(name, known)
        notes.append(
            f"scheduler: {name} has {', '.join(left)}, not taken over; its ODE is solved by "
            f"{diffusion.default_solver} at the times {diffusion.spacing}; --check measures the difference"
        )
    return notes


def _asks(plain: Mapping[str, Any], field: str, harmless: tuple[Any, ...]) -> bool:
    return field in plain and plain[field] not in harmless
