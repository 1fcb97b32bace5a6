"""diffusers' schedulers as our diffusion: the noise process and the sampler of a pipeline."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ard.diffusion import Diffusion, DiffusionKind, TimeSpacing
from ard.files import read_json
from ard.published.settings import read_settings, require

SPACINGS = {  # How a scheduler spaces its times when its file does not say.
    "DDIMScheduler": TimeSpacing.LEADING,
    "DDPMScheduler": TimeSpacing.LEADING,
    "DPMSolverMultistepScheduler": TimeSpacing.LINSPACE,
}


class Schedule(NamedTuple):
    """A noise process with its sampler, and what people are told of it."""

    diffusion: Diffusion
    notes: tuple[str, ...]


DITS_OWN = Schedule(Diffusion(kind=DiffusionKind.VP), ())


def read_scheduler(path: Path) -> Schedule:
    """The scheduler in a scheduler_config.json; InputError for a noise process that is not DiT's."""
    plain = read_json(path)
    config = read_settings(_Scheduler, path, tuple(SPACINGS))
    if plain.get("trained_betas") is not None:
        require(f"{path}: trained_betas", "a list of its own", ("None",))
    diffusion = Diffusion(
        kind=DiffusionKind.VP,
        num_train_steps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        spacing=config.timestep_spacing or SPACINGS[plain["_class_name"]],
    )
    return Schedule(diffusion, ())


@dataclass(frozen=True, kw_only=True)
class _Scheduler:
    """What is read of a scheduler's scheduler_config.json, with diffusers' defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: TimeSpacing | None = None
    steps_offset: int = 0
    clip_sample: bool = False
    thresholding: bool = False
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse what DiT's ODE is not."""
        require("beta_schedule", self.beta_schedule, ("linear",))
        require("prediction_type", self.prediction_type, ("epsilon",))
        require("steps_offset", self.steps_offset, (0,))
        require("clip_sample", self.clip_sample, (False,))
        require("thresholding", self.thresholding, (False,))
        require("set_alpha_to_one", self.set_alpha_to_one, (True,))
        require("rescale_betas_zero_snr", self.rescale_betas_zero_snr, (False,))
