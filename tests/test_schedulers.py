"""Schedulers of diffusers: a teacher solves its ODE as its own pipeline does, from the same noise, by default."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.diffusion.process import Diffusion
from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.importers.scheduler import Schedule, read_scheduler
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode

# What diffusers says of its own use of numpy, and of what it will drop.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")]

DDIM, DDPM, PNDM = "DDIMScheduler", "DDPMScheduler", "PNDMScheduler"
DPM, EULER = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
NETWORK = TransformerConfig(width=24, depth=2, num_heads=2, patch_size=2, latent_size=8, channels=4, num_classes=5)
LABEL = torch.tensor([4, 0])


@pytest.fixture(scope="module")
def network() -> Transformer:
    """A random network whose output is about as large as noise."""
    made = Transformer(NETWORK).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        scale = 0.7 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return made


def noise() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def theirs(network: Transformer, scheduler: Any, steps: int) -> Tensor:
    """The latents that diffusers draws, by the loop that all its pipelines have."""
    scheduler.set_timesteps(steps)
    x = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    for t in scheduler.timesteps:
        output = network(scale(x, t), torch.full((2,), float(t)), LABEL)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def saved(folder: Path, name: str, fields: dict[str, Any]) -> tuple[Any, Schedule]:
    """A scheduler of diffusers, and what is read of its file."""
    import diffusers

    scheduler = getattr(diffusers, name)(**fields)
    scheduler.save_pretrained(folder)
    return scheduler, read_scheduler(folder / "scheduler_config.json")


def ours(network: Transformer, diffusion: Diffusion, steps: int) -> Tensor:
    """The latents that `ard collect` draws without options."""
    teacher = Teacher(network, diffusion, None, "0" * 16)
    ode = plan_ode(teacher, num_teacher_steps=steps, guidance=Guidance(cfg_scale=1.0))
    return solve_pf_ode(teacher, noise(), LABEL, ode=ode, kept=(steps,)).x_t[:, -1]


def gap(network: Transformer, folder: Path, name: str, fields: dict[str, Any], steps: int) -> float:
    scheduler, schedule = saved(folder, name, fields)
    wanted = theirs(network, scheduler, steps)
    return float((ours(network, schedule.diffusion, steps) - wanted).norm() / wanted.norm())


SPACINGS = ["linspace", "leading", "trailing"]
EXACT: list[tuple[str, dict[str, Any]]] = [
    *[(name, {"timestep_spacing": one}) for name in (DDIM, DPM, EULER) for one in SPACINGS],
    *[(DDIM, {"timestep_spacing": one, "clip_sample": False}) for one in SPACINGS],
    *[(name, {"timestep_spacing": "leading", "steps_offset": 1}) for name in (DDIM, DPM, EULER)],
    (DDIM, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    (DDIM, {"clip_sample_range": 0.5}),
    (DPM, {"solver_order": 1}),
    (DPM, {"final_sigmas_type": "sigma_min"}),
    (EULER, {"use_exponential_sigmas": True}),
    (EULER, {"use_karras_sigmas": True}),
    (EULER, {"final_sigmas_type": "sigma_min"}),
    *[(DDIM, {"clip_sample": False, "beta_schedule": one}) for one in ("scaled_linear", "squaredcos_cap_v2")],
    (DDIM, {"clip_sample": False, "num_train_timesteps": 500, "beta_start": 2e-4, "beta_end": 0.03}),
    (FLOW, {}),
    (FLOW, {"shift": 3.0}),
]


@pytest.mark.parametrize("steps", [20, 7])
@pytest.mark.parametrize(("name", "fields"), EXACT, ids=str)
def test_the_latents_are_the_pipelines(
    network: Transformer, tmp_path: Path, name: str, fields: dict[str, Any], steps: int
) -> None:
    assert gap(network, tmp_path, name, fields, steps) <= 1e-3


ROUNDED = ["use_lu_lambdas", "use_exponential_sigmas", "use_karras_sigmas"]


@pytest.mark.parametrize("field", ROUNDED)
def test_sigmas_between_the_times_are_taken_over_and_what_rounding_costs_is_said(
    network: Transformer, tmp_path: Path, field: str
) -> None:
    """DPM-Solver++ feeds its network rounded times there, and ours the times of its sigmas: .03 to .3 % apart."""
    assert 1e-4 < gap(network, tmp_path, DPM, {field: True}, 20) <= 5e-3
    (note,) = saved(tmp_path, DPM, {field: True})[1].notes
    assert "feeds its network rounded times" in note


# What is not taken over, the words for it, and how far the latents of 20 steps are apart at most.
NOT_TAKEN: dict[str, tuple[str, dict[str, Any], str, float]] = {
    "PNDM": (
        PNDM,
        {},
        "has its steps of fourth order, not taken over; its ODE is solved by ddim at the times lead",
        0.1,
    ),
    "DDPM": (DDPM, {"clip_sample": False}, "has new noise in every step, not taken over; its ODE is", 1.0),
    "order 3": (DPM, {"solver_order": 3}, "has solver_order 3, not taken over; its ODE is solved by dpmpp_2m at", 0.03),
    "heun": (DPM, {"solver_type": "heun"}, "has solver_type 'heun', not taken over", 0.01),
    "dpmsolver": (
        DPM,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "algorithm_type 'dpmsol",
        0.02,
    ),
    "SDE": (DPM, {"algorithm_type": "sde-dpmsolver++"}, "has algorithm_type 'sde-dpmsolver++', not taken over", 1.0),
    "thresholding": (DDIM, {"thresholding": True, "clip_sample": False}, "has thresholding True, not taken over", 1e4),
    "Euler's noise": ("EulerAncestralDiscreteScheduler", {}, "has new noise in every step, not taken over", 1.0),
    "log-linear": (EULER, {"interpolation_type": "log_linear"}, "has interpolation_type 'log_linear', not taken", 0.01),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_not_taken_over_is_named_in_one_line(network: Transformer, tmp_path: Path, case: str) -> None:
    name, fields, words, most = NOT_TAKEN[case]
    torch.manual_seed(0)  # Those with new noise draw it from here.
    assert 1e-6 < gap(network, tmp_path, name, fields, 20) < most
    (note,) = saved(tmp_path, name, fields)[1].notes
    assert words in note
    assert "\n" not in note


def test_clipping_is_told_and_betas_of_ones_own_are_refused_in_a_short_line(tmp_path: Path) -> None:
    assert saved(tmp_path, DDIM, {})[1].notes == ("scheduler: clip_sample cuts each clean estimate to ±1, here too",)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": DDIM, "trained_betas": [0.01] * 1000}))
    with pytest.raises(InputError, match="trained_betas has betas of its own; allowed: None") as refusal:
        read_scheduler(path)
    assert len(str(refusal.value)) < 200 + len(str(path))
