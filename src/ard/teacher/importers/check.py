"""A few latents drawn twice, by our network and solver and by what published the teacher: how far they are apart."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.core.file_kinds import weight_files
from ard.core.files import read_json
from ard.core.offline import offline, quietly
from ard.core.types import Latents
from ard.networks.autoencoder import diffusers_package
from ard.networks.condition import Condition, Prompts, padded
from ard.networks.registry import build_network
from ard.teacher.importers import original
from ard.teacher.importers.adapter import merged_with
from ard.teacher.importers.checkpoint import ANCHOR
from ard.teacher.importers.choice import Choice
from ard.teacher.importers.folder import find_transformer
from ard.teacher.importers.tensors import Published, find_network, read_saved
from ard.teacher.teacher import Guidance, SourceFormat, Teacher, noise_for_seeds, plan_ode, solve_pf_ode

STEPS, SEEDS, SCALE, TEXT_TOKENS = 8, range(2), 4.0, 6
CLOSE = 1e-3  # Float32 on another path is within 1e-5; a tenth of a percent cannot be seen.
Predict = Callable[[Latents, Any], Latents]


class Check(NamedTuple):
    """How far our latents are from the others', as a part of those."""

    by: str
    difference: float

    def __str__(self) -> str:
        told = "as it should be" if self.difference <= CLOSE else "further than rounding: see the notes above"
        return (
            f"check: {len(SEEDS)} latents in {STEPS} steps here and by {self.by}: relative difference "
            f"{self.difference:.2g}, {told}"
        )


@torch.no_grad()
def check_published(source: Path, published: Published, choice: Choice) -> Check:
    """Draw the same latents twice; InputError where there is nothing to draw them by."""
    card, network = published.card, build_network(published.card.network).eval()
    assert card.imported is not None  # noqa: S101 whatever is read here was imported
    network.load_state_dict(published.weights)
    teacher = Teacher(network, card.diffusion, None, "", card.imported.cfg_channels)
    guided = card.network.null_class or card.network.text is not None
    guidance = Guidance(cfg_scale=SCALE if guided else 1.0)
    shape = (card.network.channels, card.network.latent_size, card.network.latent_size)
    noise, condition = noise_for_seeds(SEEDS, shape), _condition(published)
    ode = plan_ode(teacher, num_teacher_steps=STEPS, guidance=guidance)
    ours = solve_pf_ode(teacher, noise, condition, ode=ode, kept=(STEPS,)).x_t[:, -1]
    if source.is_dir():
        by, theirs = "diffusers", _by_diffusers(source, published, noise, condition, guidance, choice)
    else:
        by, theirs = "its own equations", _by_equations(source, published, noise, condition, guidance, choice)
    return Check(by, float((ours - theirs).norm() / theirs.norm()))


def _condition(published: Published) -> Condition:
    """The first and the last class, or two random texts, one of them shorter."""
    network = published.card.network
    if network.text is None:
        return torch.tensor([0, network.num_classes - 1])
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(3, TEXT_TOKENS, network.text.width, generator=generator)
    return padded([texts[0], texts[1, : TEXT_TOKENS // 2]], null=texts[2, :1], length=TEXT_TOKENS)


def _guided(
    predict: Callable[[Latents, Any, Any], Latents], given: Any, null: Any, scale: float, channels: int
) -> Predict:
    """Classifier-free guidance of the first channels, all where `channels` is negative."""

    def mixed(x: Latents, t: Any) -> Latents:
        output = predict(x, t, given)
        if scale == 1:
            return output
        none, last = predict(x, t, null), channels if channels >= 0 else x.shape[1]
        return torch.cat([(none + scale * (output - none))[:, :last], output[:, last:]], dim=1)

    return mixed


def _by_equations(
    path: Path, published: Published, noise: Latents, label: Condition, guidance: Guidance, choice: Choice
) -> Latents:
    network, imported = published.card.network, published.card.imported
    assert imported is not None  # noqa: S101 see above
    if imported.format is SourceFormat.PIXART:
        raise InputError(f"--check has no second way to draw from {path}; check the folder of diffusers instead")
    assert isinstance(label, Tensor)  # noqa: S101 they have classes
    tensors = find_network(read_saved(path), ANCHOR, choice.weights_key, path).tensors
    tensors = merged_with(choice.lora, tensors, path)[0]
    null = torch.full_like(label, network.num_classes)
    output = partial(original.forward, tensors, network)
    predict = _guided(output, label, null, guidance.cfg_scale, imported.cfg_channels)
    return original.draw(imported.format, predict, noise, STEPS)


@offline()
def _by_diffusers(
    source: Path, published: Published, noise: Latents, condition: Condition, guidance: Guidance, choice: Choice
) -> Latents:
    """By diffusers' own network and scheduler, in the loop that its pipelines have."""
    diffusers = diffusers_package()
    folder, scheduler = find_transformer(source), source / "scheduler"
    name = "DiTTransformer2DModel" if published.card.network.text is None else "PixArtTransformer2DModel"
    files = weight_files(folder)
    with quietly():
        network = getattr(diffusers, name).from_pretrained(
            folder,
            local_files_only=True,
            low_cpu_mem_usage=False,  # True needs one more package.
            torch_dtype=torch.float32,
            variant=files.variant or None,
            use_safetensors=files.paths[0].suffix == ".safetensors",
        )
        network.load_state_dict(merged_with(choice.lora, network.state_dict(), folder)[0])
        steps = _scheduler(diffusers, scheduler)
    predict = _text_network(network, noise) if isinstance(condition, Prompts) else _class_network(network, noise)
    guided = _guided(predict, *_given(condition, published), guidance.cfg_scale, -1)
    return _loop(steps, guided, noise)


def _scheduler(diffusers: Any, folder: Path) -> Any:
    """The pipeline's own, ready to draw; for a network alone DDIM's steps from one of DiT's own times to the next."""
    if folder.is_dir():
        kind = getattr(diffusers, read_json(folder / "scheduler_config.json")["_class_name"])
        scheduler = kind.from_pretrained(folder, local_files_only=True)
        scheduler.set_timesteps(STEPS)
    else:
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(timesteps=[round(999 * step / (STEPS - 1)) for step in reversed(range(STEPS))])
    return scheduler


def _loop(scheduler: Any, predict: Predict, noise: Latents) -> Latents:
    """What every pipeline of diffusers does."""
    scaled = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        x = scheduler.step(predict(scaled(x, t), t), t, x, return_dict=False)[0]
    return x


def _given(condition: Condition, published: Published) -> tuple[Any, Any]:
    """The condition and none of it, as diffusers' networks take them."""
    if not isinstance(condition, Prompts):
        return condition, torch.full_like(condition, published.card.network.num_classes)
    null = condition.null.expand(len(condition), -1, -1)
    return (condition.tokens, condition.mask.long()), (null, torch.ones(null.shape[:2], dtype=torch.long))


def _class_network(network: Any, noise: Latents) -> Callable[[Latents, Any, Any], Latents]:
    def predict(x: Latents, t: Any, label: Tensor) -> Latents:
        output: Tensor = network(x, timestep=t.expand(len(x)), class_labels=label).sample
        return output[:, : noise.shape[1]]

    return predict


def _text_network(network: Any, noise: Latents) -> Callable[[Latents, Any, Any], Latents]:
    side = 8.0 * network.config.sample_size
    sizes = {"resolution": torch.full((len(noise), 2), side), "aspect_ratio": torch.ones(len(noise), 1)}

    def predict(x: Latents, t: Any, text: tuple[Tensor, Tensor]) -> Latents:
        times, (tokens, mask) = t.expand(len(x)), text
        output: Tensor = network(x, tokens, timestep=times, encoder_attention_mask=mask, added_cond_kwargs=sizes).sample
        return output[:, : noise.shape[1]]

    return predict
