"""Published teachers: our network against diffusers' own and against the published equations, and every known trap."""

import json
import math
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.diffusion.process import Diffusion, DiffusionKind, FlowClock
from ard.diffusion.spacing import TimeSpacing
from ard.networks.dit_layers import sincos_positions
from ard.networks.transformer import Transformer, TransformerConfig
from ard.teacher.importers import Choice, Published, read_published
from ard.teacher.teacher import Guidance, SourceFormat, Teacher, plan_ode, solve_pf_ode

Weights = dict[str, Tensor]
DIT, SIT, REPA = SourceFormat.DIT, SourceFormat.SIT, SourceFormat.REPA
WIDTH, HEADS, PATCH, SIZE, CHANNELS, CLASSES, DEPTH = 24, 2, 2, 8, 4, 7, 3
LABEL, FREQUENCIES = torch.tensor([4, 1, 0]), 256


def latents(rows: int = 3, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def times(t: float) -> Tensor:
    return torch.full((3,), t, dtype=torch.float64)


def read(source: Path, told: SourceFormat | None = None, num_heads: int | None = None, **more: Any) -> Published:
    return read_published(source, Choice(format=told, num_heads=num_heads, **more))


def built(published: Published) -> Transformer:
    network = Transformer(published.card.network).eval().requires_grad_(False)
    network.load_state_dict(published.weights)
    return network


def as_teacher(published: Published) -> Teacher:
    imported = published.card.imported
    assert imported is not None
    return Teacher(built(published).double(), published.card.diffusion, None, "0" * 16, imported.cfg_channels)


# Checkpoints of DiT's, SiT's and REPA's own code, with their names, written here by their formats.


def checkpoint(*, outputs: int = 2 * CHANNELS, width: int = WIDTH) -> Weights:
    """A random state dict under the names of DiT's code."""
    generator = torch.Generator().manual_seed(3)

    def linear(name: str, rows: int, columns: int) -> Weights:
        weight = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return {f"{name}.weight": weight, f"{name}.bias": 0.3 * torch.randn(rows, generator=generator)}

    patches = linear("x_embedder.proj", width, CHANNELS * PATCH**2)
    patches["x_embedder.proj.weight"] = patches["x_embedder.proj.weight"].view(width, CHANNELS, PATCH, PATCH)
    weights: Weights = {"pos_embed": sincos_positions(width, SIZE // PATCH).unsqueeze(0), **patches}
    weights |= linear("t_embedder.mlp.0", width, FREQUENCIES) | linear("t_embedder.mlp.2", width, width)
    weights["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, width, generator=generator)
    for block in range(DEPTH):
        shapes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (rows, columns) in {**shapes, "adaLN_modulation.1": (6, 1)}.items():
            weights |= linear(f"blocks.{block}.{name}", rows * width, columns * width)
    weights |= linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return weights | linear("final_layer.linear", PATCH**2 * outputs, width)


def forward(w: Weights, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The published network in float64, written out from its equations; `t` is what its embedding is fed.

    Of its output, the channels that are no variance.
    """
    w, x, t = {name: tensor.double() for name, tensor in w.items()}, x.double(), t.double()

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        variance = value.var(-1, keepdim=True, unbiased=False)
        return (value - value.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    def heads(value: Tensor) -> Tensor:
        return value.view(len(x), -1, HEADS, value.shape[-1] // HEADS).transpose(1, 2)

    silu, gelu = torch.nn.functional.silu, torch.nn.GELU(approximate="tanh")
    kernel = w["x_embedder.proj.weight"]
    tokens = torch.nn.functional.conv2d(x, kernel, w["x_embedder.proj.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    tokens = tokens + w["pos_embed"]
    angles = t[:, None] * 10000.0 ** -(torch.arange(FREQUENCIES // 2, dtype=torch.float64) / (FREQUENCIES // 2))
    time = linear(silu(linear(torch.cat([angles.cos(), angles.sin()], 1), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = silu(time + w["y_embedder.embedding_table.weight"][label])
    for block in range(DEPTH):
        name = f"blocks.{block}"
        s1, k1, g1, s2, k2, g2 = linear(c, f"{name}.adaLN_modulation.1").chunk(6, 1)
        q, k, v = (heads(part) for part in linear(norm(tokens, s1, k1), f"{name}.attn.qkv").chunk(3, -1))
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        attended = linear((scores @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        tokens = tokens + g1[:, None] * attended
        tokens = tokens + g2[:, None] * linear(gelu(linear(norm(tokens, s2, k2), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    shift, scale = linear(c, "final_layer.adaLN_modulation.1").chunk(2, 1)
    out = linear(norm(tokens, shift, scale), "final_layer.linear")
    grid = SIZE // PATCH
    picture = out.view(len(x), grid, grid, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4)
    return picture.reshape(len(x), -1, SIZE, SIZE)[:, :CHANNELS]


def saved(path: Path, weights: Any) -> Path:
    """A checkpoint file; .safetensors by its suffix."""
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def projectors() -> Weights:
    return {f"projectors.0.{layer}.weight": torch.zeros(2, 2) for layer in (0, 2, 4)}


class TestDit:
    """DiT's own checkpoints."""

    @pytest.mark.parametrize("name", ["DiT-tiny-256x256.pt", "DiT-tiny.safetensors"])
    def test_the_network_is_the_published_one(self, tmp_path: Path, name: str) -> None:
        weights, x, t = checkpoint(), latents().double(), torch.tensor([999.0, 480.0, 0.0], dtype=torch.float64)
        network = built(read(saved(tmp_path / name, weights), num_heads=HEADS)).double()
        torch.testing.assert_close(network(x, t, LABEL), forward(weights, x, t, LABEL), rtol=0, atol=1e-10)

    def test_its_shape_is_read_from_the_tensors(self, tmp_path: Path) -> None:
        card = read(saved(tmp_path / "DiT.pt", checkpoint()), num_heads=HEADS).card
        assert card.network == TransformerConfig(
            width=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            patch_size=PATCH,
            latent_size=SIZE,
            channels=CHANNELS,
            num_classes=CLASSES,
            learn_sigma=True,
        )
        assert card.diffusion == Diffusion(kind=DiffusionKind.VP)

    def test_a_width_of_dits_table_tells_the_heads(self, tmp_path: Path) -> None:
        assert read(saved(tmp_path / "DiT.pt", checkpoint(width=384))).card.network.num_heads == 6

    def test_three_channels_are_guided_and_the_others_stay_conditional(self, tmp_path: Path) -> None:
        weights, x = checkpoint(), latents().double()
        teacher = as_teacher(read(saved(tmp_path / "DiT.pt", weights), num_heads=HEADS))
        guided = teacher.denoise(LABEL, Guidance(cfg_scale=4.0))(x, times(500))
        t, null = times(499), torch.full_like(LABEL, CLASSES)
        cond, uncond = forward(weights, x, t, LABEL), forward(weights, x, t, null)
        wanted = torch.cat([(uncond + 4 * (cond - uncond))[:, :3], cond[:, 3:]], 1)
        torch.testing.assert_close(guided, wanted, rtol=0, atol=1e-10)
        assert plan_ode(teacher, num_teacher_steps=4, guidance=Guidance()).guidance.cfg_channels == 3

    def test_the_variance_is_dropped_and_a_network_without_one_is_read(self, tmp_path: Path) -> None:
        weights, x = checkpoint(outputs=CHANNELS), latents().double()
        published = read(saved(tmp_path / "DiT.pt", weights), num_heads=HEADS)
        assert not published.card.network.learn_sigma
        output = built(published).double()(x, times(100), LABEL)
        assert output.shape == x.shape
        torch.testing.assert_close(output, forward(weights, x, times(100), LABEL), rtol=0, atol=1e-10)

    def test_a_trainings_average_is_taken_with_its_options(self, tmp_path: Path) -> None:
        weights = checkpoint()
        other = {name: tensor + 1 for name, tensor in weights.items()}
        args = Namespace(model="DiT-S/2", num_classes=CLASSES)
        training = {"model": other, "ema": weights, "opt": {}, "args": args}
        published = read(saved(tmp_path / "0400000.pt", training), num_heads=HEADS)
        assert published.card.imported is not None
        assert published.card.imported.format is DIT
        assert published.weights["final_layer.linear.bias"].equal(weights["final_layer.linear.bias"])

    def test_half_precision_is_computed_with_in_full(self, tmp_path: Path) -> None:
        half = {name: tensor.half() for name, tensor in checkpoint().items()}
        published = read(saved(tmp_path / "DiT.pt", half), num_heads=HEADS)
        assert {tensor.dtype for tensor in published.weights.values()} == {torch.float32}


class TestFlows:
    """SiT's and REPA's checkpoints, against the equations of their interpolants.

    SiT's code: x_t = t x + (1 - t) e, velocity dx_t/dt = x - e, so its ODE runs from t = 0 (noise) to 1.
    REPA's:     x_t = (1 - t) x + t e, velocity dx_t/dt = e - x, so its ODE runs from t = 1 (noise) to 0.
    """

    @pytest.mark.parametrize("name", ["SiT-XL-2-256x256.pt", "repa-last.pt"])
    def test_the_ode_is_the_published_one_from_the_same_noise(self, tmp_path: Path, name: str) -> None:
        weights, steps, scale, noise = checkpoint(), 10, 1.5, latents().double()
        reversed_time = name.startswith("SiT")
        channels = 3 if reversed_time else CHANNELS  # SiT's sampler guides three, REPA's all.
        x = noise
        for step in range(steps):
            t = times(step / steps if reversed_time else 1 - step / steps)
            cond, uncond = (forward(weights, x, t, label) for label in (LABEL, torch.full_like(LABEL, CLASSES)))
            velocity = torch.cat([(uncond + scale * (cond - uncond))[:, :channels], cond[:, channels:]], 1)
            x = x + (1 if reversed_time else -1) * velocity / steps
        teacher = as_teacher(read(saved(tmp_path / name, weights), num_heads=HEADS))
        ode = plan_ode(teacher, num_teacher_steps=steps, guidance=Guidance(cfg_scale=scale))
        solved = solve_pf_ode(teacher, noise, LABEL, ode=ode, kept=(0, steps)).x_t[:, -1]
        torch.testing.assert_close(solved, x, rtol=0, atol=1e-9)
        assert (x - noise).abs().mean() > 0.1

    @pytest.mark.parametrize(("told", "clock"), [(SIT, FlowClock.REVERSED), (REPA, FlowClock.PLAIN)])
    def test_the_clean_estimate_is_the_published_interpolants(
        self, tmp_path: Path, told: SourceFormat, clock: FlowClock
    ) -> None:
        """SiT: x = x_t + (1 - t) v. REPA: x = x_t - t v. Both at our time 0.3."""
        weights, x, ours = checkpoint(), latents().double(), times(0.3)
        teacher = as_teacher(read(saved(tmp_path / "last.pt", weights), told, HEADS))
        assert teacher.diffusion.clock is clock
        output = teacher.denoise(LABEL, Guidance(cfg_scale=1.0))(x, ours)
        if told is SIT:
            wanted = x + 0.3 * forward(weights, x, times(0.7), LABEL)
        else:
            wanted = x - 0.3 * forward(weights, x, ours, LABEL)
        torch.testing.assert_close(teacher.diffusion.split(x, output, ours)[0], wanted, rtol=0, atol=1e-10)

    def test_repas_projectors_are_dropped_and_named(self, tmp_path: Path) -> None:
        published = read(saved(tmp_path / "last.pt", checkpoint(outputs=CHANNELS) | projectors()), num_heads=HEADS)
        assert published.card.imported is not None
        assert published.card.imported.format is REPA
        assert published.card.imported.dropped == tuple(projectors())

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({"model": "DiT-XL/2"}, DIT),
            ({"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity"}, SIT),
            ({"model": "SiT-XL/2", "path_type": "linear", "prediction": "v", "encoder_depth": 8}, REPA),
        ],
    )
    def test_a_trainings_options_tell_whose_it_is(
        self, tmp_path: Path, options: dict[str, Any], kind: SourceFormat
    ) -> None:
        training = {"ema": checkpoint(), "args": Namespace(**options)}
        imported = read(saved(tmp_path / "0400000.pt", training), num_heads=HEADS).card.imported
        assert imported is not None
        assert imported.format is kind


def without(name: str) -> Callable[[Weights], Any]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def trained(**options: Any) -> Callable[[Weights], Any]:
    return lambda weights: {"ema": weights, "args": Namespace(**options)}


class Code:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


REFUSALS: dict[str, tuple[str, Callable[[Weights], Any], str]] = {
    "whose": (
        "last.pt",
        dict,
        "does not say whose it is, and the tensors of DiT, SiT and REPA are alike; add --format",
    ),
    "code": ("DiT.pt", lambda weights: {**weights, "code": Code()}, "code is never run"),
    "no names": ("DiT.pt", lambda _: {0: torch.zeros(1)}, "holds no tensors; a state dict is expected"),
    "a list": ("DiT.pt", lambda _: [torch.zeros(1)], "holds a list; a state dict is expected"),
    "no positions": ("DiT.pt", without("pos_embed"), "lacks pos_embed, which tells the size of its latents; give it"),
    "another network": ("DiT.pt", lambda _: {"conv.weight": torch.zeros(3)}, "lacks x_embedder.proj.weight"),
    "a missing tensor": ("DiT.pt", without("blocks.1.attn.proj.bias"), "lacks blocks.1.attn.proj.bias"),
    "an extra tensor": (
        "DiT.pt",
        lambda weights: {**weights, "blocks.0.attn.bias": torch.ones(12)},
        "has extra blocks.0.attn.bias",
    ),
    "normalised queries": (
        "repa.pt",
        lambda weights: {**weights, "blocks.0.attn.q_norm.weight": torch.ones(12)},
        "has extra q_norm and k_norm: it was trained with --qk-norm, which is not supported",
    ),
    "projectors that are no REPA's": (
        "DiT.pt",
        lambda weights: trained(model="DiT")(weights | projectors()),
        "can be read in two ways (its projectors: repa; its option model DiT: dit; the name DiT.pt: dit)",
    ),
    "a misshapen tensor": (
        "DiT.pt",
        lambda weights: {**weights, "t_embedder.mlp.2.bias": torch.ones(3)},
        "does not fit its own shapes in t_embedder.mlp.2.bias",
    ),
    "other positions": (
        "DiT.pt",
        lambda weights: {**weights, "pos_embed": weights["pos_embed"].flip(1)},
        "pos_embed is not DiT's sine-cosine table of 4 x 4 patches",
    ),
    "other classes": ("0.pt", trained(model="DiT", num_classes=3), "has 8 rows for classes, and its option num_class"),
    "another path": (
        "0.pt",
        trained(path_type="GVP", prediction="velocity"),
        "was trained on the path GVP to predict velocity; linear and velocity are read",
    ),
    "another prediction": ("0.pt", trained(path_type="Linear", prediction="score"), "to predict score"),
    "odd outputs": (
        "DiT.pt",
        lambda weights: {**weights, "final_layer.linear.weight": torch.zeros(20, WIDTH)},
        "has 20 outputs per patch; 16 or, with a variance, 32 are read",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, words = REFUSALS[case]
    path = saved(tmp_path / name, spoil(checkpoint()))
    with pytest.raises(InputError) as refusal:
        read(path, num_heads=HEADS)
    message = str(refusal.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message
    assert "code was run" not in capsys.readouterr().out


def test_a_width_that_is_none_of_dits_needs_its_heads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the width 24, which is none of DiT's; say how many --num-heads"):
        read(saved(tmp_path / "DiT.pt", checkpoint()))


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "DiT.pt", checkpoint())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="is damaged"):
        read(path, num_heads=HEADS)


def test_what_is_neither_a_path_nor_a_repository_is_refused() -> None:
    for source in ("nowhere", "a/b/c", "/nowhere/else", "../up"):
        with pytest.raises(InputError, match=r"is no file or folder here; name one, or a repository"):
            read(Path(source))


# Folders of diffusers.

TRANSFORMER = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "in_channels": CHANNELS,
    "out_channels": 2 * CHANNELS,
    "num_layers": DEPTH,
    "sample_size": SIZE,
    "patch_size": PATCH,
    "num_embeds_ada_norm": 1000,  # DiTPipeline's null class is 1000, whatever the network has.
}


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


@torch.no_grad()
def random_dit(diffusers: Any, **changes: Any) -> Any:
    """A DiT of diffusers whose every weight is random, with one embedder for all blocks, as converted ones have it."""
    network = diffusers.DiTTransformer2DModel(**{**TRANSFORMER, **changes}).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        scale = 0.7 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    first = network.transformer_blocks[0].norm1.emb
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first.state_dict())
    return network


@pytest.fixture(scope="module")
def make_pipeline(
    diffusers: Any, autoencoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, Path]]:
    """make_pipeline(**scheduler): a DiTPipeline and the folder that it was saved in."""

    def make(**scheduler: Any) -> tuple[Any, Path]:
        vae = diffusers.AutoencoderKL.from_pretrained(autoencoder_folder, low_cpu_mem_usage=False)
        ddim = diffusers.DDIMScheduler(**{"clip_sample": False, **scheduler})
        names = {label: f"name {label}" for label in range(1000)}
        pipeline = diffusers.DiTPipeline(random_dit(diffusers), vae, ddim, names)
        pipeline.set_progress_bar_config(disable=True)
        folder = tmp_path_factory.mktemp("pipeline")
        pipeline.save_pretrained(folder)
        return pipeline, folder

    return make


@pytest.fixture(scope="module")
def saved_pipeline(make_pipeline: Callable[..., tuple[Any, Path]]) -> tuple[Any, Path]:
    """With diffusers' defaults. Tests leave it as it is."""
    return make_pipeline()


@torch.no_grad()
def drawn_by_pipeline(pipeline: Any, noise: Tensor, labels: Tensor, *, steps: int, scale: float) -> Tensor:
    """The last latents of a DiTPipeline that starts from `noise`."""
    found = []

    class Decoder:
        config = type("Config", (), {"scaling_factor": 1.0})

        def decode(self, z: Tensor) -> Any:
            found.append(z)
            return type("Output", (), {"sample": torch.zeros(len(z), 3, 1, 1)})

    generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
    assert torch.cat([torch.randn(1, *noise.shape[1:], generator=g) for g in generators]).equal(noise)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
    vae, pipeline.vae = pipeline.vae, Decoder()
    try:
        pipeline(labels.tolist(), guidance_scale=scale, generator=generators, num_inference_steps=steps)
    finally:
        pipeline.vae = vae
    return found[0]


class TestDiffusers:
    """DiTPipeline and DiTTransformer2DModel, read without diffusers."""

    @pytest.mark.parametrize("norm_eps", [1e-5, 0.3])
    def test_the_network_is_diffusers_own(self, diffusers: Any, tmp_path: Path, norm_eps: float) -> None:
        theirs, t = random_dit(diffusers, norm_eps=norm_eps), torch.tensor([999, 480, 0])
        theirs.save_pretrained(tmp_path)
        network = built(read(tmp_path))
        emb = theirs.transformer_blocks[0].norm1.emb
        with torch.no_grad():
            pairs = {
                "tokens": (network.embed(latents()), theirs.pos_embed(latents())),
                "time": (network.t_embedder(t.float()), emb.timestep_embedder(emb.time_proj(t))),
                "label": (network.y_embedder(LABEL), emb.class_embedder(LABEL)),
                "condition": (network.condition(t.float(), LABEL), emb(t, LABEL, hidden_dtype=torch.float32)),
                "output": (network(latents(), t.float(), LABEL), theirs(latents(), t, LABEL).sample[:, :CHANNELS]),
            }
        for name, (ours, wanted) in pairs.items():
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")

    @pytest.mark.parametrize("spacing", ["leading", "trailing"])
    def test_the_guided_ode_is_the_pipelines(
        self, make_pipeline: Callable[..., tuple[Any, Path]], spacing: str
    ) -> None:
        pipeline, folder = make_pipeline(timestep_spacing=spacing)
        noise = torch.cat([latents(1, seed=seed) for seed in range(3)])
        wanted = drawn_by_pipeline(pipeline, noise, LABEL, steps=25, scale=1.5)
        teacher = as_teacher(read(folder))
        teacher.network.float()
        ode = plan_ode(teacher, num_teacher_steps=25, guidance=Guidance(cfg_scale=1.5))
        solved = solve_pf_ode(teacher, noise, LABEL, ode=ode, kept=(0, 25)).x_t[:, -1]
        torch.testing.assert_close(solved, wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())

    def test_the_frequencies_and_the_epsilon_are_diffusers(self, saved_pipeline: tuple[Any, Path]) -> None:
        network = read(saved_pipeline[1]).card.network
        assert (network.frequency_shift, network.mlp_norm_eps) == (1, 1e-5)

    def test_a_transformer_alone_has_dits_schedule(self, saved_pipeline: tuple[Any, Path]) -> None:
        card = read(saved_pipeline[1] / "transformer").card
        assert card.diffusion == Diffusion(kind=DiffusionKind.VP)
        assert card.imported is not None
        assert (card.imported.vae, card.imported.scaling_factor) == (None, 0.18215)

    def test_the_pipeline_brings_its_schedule_its_autoencoder_and_its_labels(
        self, saved_pipeline: tuple[Any, Path], tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(saved_pipeline[1], tmp_path / "pipeline"))
        change(folder / "model_index.json", id2label={str(label): f"name {label}" for label in range(1000)})
        scheduler = json.loads((folder / SCHEDULER).read_text()) | {"beta_end": 0.03}
        del scheduler["timestep_spacing"]  # As in the files of before it had this field.
        (folder / SCHEDULER).write_text(json.dumps(scheduler))
        change(folder / "vae/config.json", scaling_factor=0.5)
        card = read(folder).card
        assert card.diffusion == Diffusion(kind=DiffusionKind.VP, beta_end=0.03, spacing=TimeSpacing.LEADING)
        assert card.imported is not None
        assert (card.imported.scaling_factor, card.imported.vae) == (0.5, str(folder / "vae"))
        assert card.imported.class_names[:2] == ("name 0", "name 1")
        assert len(card.imported.class_names) == 1000

    def test_older_and_shared_out_folders_are_read(self, saved_pipeline: tuple[Any, Path], tmp_path: Path) -> None:
        pipeline, folder = saved_pipeline
        whole = read(folder).weights
        pipeline.transformer.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
        assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
        pipeline.transformer.save_pretrained(tmp_path / "old", safe_serialization=False)
        change(tmp_path / "old" / "config.json", _class_name="Transformer2DModel")
        for name in ("parts", "old"):
            weights = read(tmp_path / name).weights
            assert weights.keys() == whole.keys()
            assert all(weights[key].equal(whole[key]) for key in whole)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, spoil: Callable[[Weights], Any]) -> None:
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    save_file(spoil(load_file(path)), path)


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, **changes)


def embedder_apart(weights: Weights) -> Weights:
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias"
    return {**weights, name: weights[name] + 1e-6}


INDEX, NETWORK, SCHEDULER = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"
QUERY = "transformer_blocks.1.attn1.to_q.weight"
FOLDER_REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda folder: (folder / INDEX).unlink(), "has no model_index.json and no config.json"),
    "another pipeline": (
        changed(INDEX, _class_name="FluxPipeline"),
        "_class_name is FluxPipeline; allowed: DiTPipeline",
    ),
    "another network": (changed(NETWORK, _class_name="UNet2DModel"), "_class_name is UNet2DModel; allowed: DiTTrans"),
    "another norm": (
        changed(NETWORK, norm_type="ada_norm_single"),
        "norm_type is ada_norm_single; allowed: ada_norm_zero",
    ),
    "another schedule": (changed(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule is 'sigmoid'; allowed: linear"),
    "another prediction": (changed(SCHEDULER, prediction_type="v_prediction"), "prediction_type is v_prediction"),
    "no noise left": (
        changed(SCHEDULER, rescale_betas_zero_snr=True),
        "zero_snr is True; allowed: False",
    ),
    "another scheduler": (changed(SCHEDULER, _class_name="UniPC"), "_class_name is UniPC; allowed: DDIMScheduler"),
    "a scale in words": (changed("vae/config.json", scaling_factor="much"), "scaling_factor is 'much'; a number is"),
    "no weights": (
        lambda folder: (folder / "transformer/diffusion_pytorch_model.safetensors").unlink(),
        "has no weights; allowed: diffusion_pytorch_model.safetensors",
    ),
    "untied embedders": (
        lambda folder: change_weights(folder, embedder_apart),
        "transformer_blocks.2.norm1.emb.timestep_embedder.linear_2.bias differs from block 0's",
    ),
    "a missing tensor": (lambda folder: change_weights(folder, without(QUERY)), f"lacks {QUERY}"),
    "an extra tensor": (
        lambda folder: change_weights(folder, lambda weights: {**weights, "adapter.weight": torch.ones(1)}),
        "has extra adapter.weight",
    ),
    "no null row": (
        changed(NETWORK, num_embeds_ada_norm=1001),
        "does not fit its own shapes in transformer_blocks.0.norm1",
    ),
}


@pytest.mark.parametrize("case", FOLDER_REFUSALS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    saved_pipeline: tuple[Any, Path], tmp_path: Path, case: str
) -> None:
    spoil, words = FOLDER_REFUSALS[case]
    folder = Path(shutil.copytree(saved_pipeline[1], tmp_path / "pipeline"))
    spoil(folder)
    with pytest.raises(InputError) as refusal:
        read(folder)
    message = str(refusal.value)
    assert words in message
    assert str(folder) in message
    assert "\n" not in message


# Repositories of the hub, as far as that goes without a network.

HUB = """
import sys
from pathlib import Path
from ard.teacher.importers import Choice, read_published
card, _ = read_published(Path("hub:owner/DiT-tiny"), Choice())
print(card.imported.source, card.imported.format, card.network.depth)
"""


def cached(root: Path, folder: Path) -> dict[str, str]:
    """An environment in offline mode whose hub cache holds `folder` as the repository owner/DiT-tiny."""
    place = root / "models--owner--DiT-tiny"
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs/main").write_text("a" * 40)
    return {**os.environ, "HF_HUB_CACHE": str(root), "HF_HUB_OFFLINE": "1"}


def test_a_repository_in_the_hubs_cache_is_read_under_its_name(
    tmp_path: Path, saved_pipeline: tuple[Any, Path]
) -> None:
    environment = cached(tmp_path / "cache", saved_pipeline[1])
    words = [sys.executable, "-c", HUB]
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert result.stdout.split() == ["owner/DiT-tiny", "diffusers", str(DEPTH)], result.stderr


def test_a_repository_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "ard", "teacher", "import", "hub:owner/DiT-tiny", "--out", str(tmp_path / "teacher")]
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("ard: the hub does not give owner/DiT-tiny (")
    assert "hf download owner/DiT-tiny --local-dir DiT-tiny" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "teacher").exists()
