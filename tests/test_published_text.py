"""PixArt of diffusers, alpha and Sigma: with the same weights our network and its guided ODE are theirs."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.diffusion.process import Diffusion, DiffusionKind, Sampler
from ard.diffusion.spacing import TimeSpacing
from ard.networks.condition import Prompts, padded
from ard.networks.dit_layers import attend_self
from ard.networks.transformer import TextConfig, Transformer, TransformerConfig
from ard.teacher.importers import Choice, Published, read_published
from ard.teacher.teacher import Guidance, Teacher, plan_ode, solve_pf_ode

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "cross_attention_dim": 24,
    "sample_size": 8,
    "caption_channels": 10,
}
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
VARIANTS: dict[str, dict[str, Any]] = {
    "alpha": {},
    "alpha at 1024": {"use_additional_conditions": True},
    "Sigma": {"interpolation_scale": 2, "out_channels": 8},
    "without variance": {"out_channels": 4},
}


def latents(rows: int = 3, *, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(rows, 4, size, size, generator=torch.Generator().manual_seed(seed))


def captions() -> Tensor:
    return torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(1))


def given() -> Prompts:
    null = torch.randn(2, 10, generator=torch.Generator().manual_seed(2))
    return padded([text[mask.bool()] for text, mask in zip(captions(), MASK, strict=True)], null=null, length=5)


def read(source: Path) -> Published:
    return read_published(source, Choice())


def built(published: Published) -> Transformer:
    network = Transformer(published.card.network).eval().requires_grad_(False)
    network.load_state_dict(published.weights)
    return network


@torch.no_grad()
def random_pixart(**changes: Any) -> Any:
    """A PixArt of diffusers whose every weight is random."""
    import diffusers

    network = diffusers.PixArtTransformer2DModel(**{**TRANSFORMER, **changes}).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        scale = 0.7 / math.sqrt(parameter.shape[1]) if parameter.ndim == 2 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def size_conditions(network: Any) -> dict[str, Tensor]:
    """What the pipeline tells a network that is told the picture's size."""
    side = 8.0 * network.config.sample_size
    return {"resolution": torch.tensor([[side, side]] * 3), "aspect_ratio": torch.ones(3, 1)}


class TestNetwork:
    """PixArtTransformer2DModel with random weights, in every embedding and at its output."""

    @torch.no_grad()
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_it_is_diffusers_own(self, variant: str, tmp_path: Path) -> None:
        theirs, t = random_pixart(**VARIANTS[variant]), torch.tensor([999, 480, 0])
        theirs.save_pretrained(tmp_path)
        network, prompts, x = built(read(tmp_path)), given(), latents()
        sizes = size_conditions(theirs)
        seen: dict[str, Tensor] = {}
        for index, block in enumerate(theirs.transformer_blocks):
            block.register_forward_hook(lambda _m, _i, out, name=f"block {index}": seen.update({name: out}))
        output = theirs(x, captions(), timestep=t, encoder_attention_mask=MASK, added_cond_kwargs=sizes).sample[:, :4]
        conditioning = network.condition(t.float(), prompts)
        modulation, vector = theirs.adaln_single(t, sizes, batch_size=3, hidden_dtype=torch.float32)
        pairs = {
            "tokens": (network.embed(x), theirs.pos_embed(x)),
            "time and size": (conditioning.vector, vector),
            "modulation": (conditioning.modulation, modulation),
            "text": (conditioning.text[MASK.bool()], theirs.caption_projection(captions())[MASK.bool()]),
            "output": (network(x, t.float(), prompts), output),
        }
        tokens = network.embed(x)
        for index, block in enumerate(network.blocks):
            tokens = block(tokens, conditioning, attend_self, index)
            pairs[f"block {index}"] = (tokens, seen[f"block {index}"])
        assert output.std() > 0.1
        for name, (ours, wanted) in pairs.items():
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")

    @pytest.mark.parametrize(
        ("size", "changes", "told", "scale"),
        [
            (32, {}, None, 1.0),  # 256 pixels.
            (128, {}, 1024, 2.0),  # alpha at 1024, whose file says neither.
            (128, {"use_additional_conditions": False}, None, 2.0),  # Sigma at 1024.
            (256, {"interpolation_scale": 4}, None, 4.0),  # Sigma at 2048.
            (32, {"interpolation_scale": 0.5}, None, 0.5),
        ],
    )
    def test_what_a_file_leaves_out_is_as_diffusers_takes_it(
        self, size: int, changes: dict[str, Any], told: int | None, scale: float, tmp_path: Path
    ) -> None:
        theirs = random_pixart(sample_size=size, num_layers=1, patch_size=4, **changes)
        theirs.save_pretrained(tmp_path)
        card = read(tmp_path).card
        assert card.network.text == TextConfig(width=10, picture_size=told)
        assert (card.network.position_scale, card.network.num_classes) == (scale, 0)
        x = latents(1, size=size)
        with torch.no_grad():
            ours, wanted = built(read(tmp_path)).embed(x), theirs.pos_embed(x)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)

    def test_at_full_size_it_has_the_published_number_of_parameters(self) -> None:
        """PixArt-alpha has 0.6 B (Chen et al., 2023); 28 blocks of width 1152 are the defaults of diffusers."""
        import diffusers

        config = TransformerConfig(
            width=1152,
            depth=28,
            num_heads=16,
            patch_size=2,
            latent_size=64,
            channels=4,
            num_classes=0,
            learn_sigma=True,
            text=TextConfig(width=4096),
        )
        with torch.device("meta"):
            theirs = diffusers.PixArtTransformer2DModel(sample_size=64, caption_channels=4096)
            counts = [sum(one.numel() for one in network.parameters()) for network in (Transformer(config), theirs)]
        assert counts[0] == counts[1] == 610_856_096

    def test_a_folder_of_before_the_class_had_its_name_is_read_and_what_is_dropped_is_named(
        self, tmp_path: Path
    ) -> None:
        theirs = random_pixart()
        theirs.save_pretrained(tmp_path / "new")
        theirs.save_pretrained(tmp_path / "old")
        change(tmp_path / "old/config.json", _class_name="Transformer2DModel")
        path = tmp_path / "old/diffusion_pytorch_model.safetensors"
        more = {
            "caption_projection.y_embedding": torch.zeros(120, 10),
            "pos_embed.pos_embed": theirs.pos_embed.pos_embed,
        }
        save_file(load_file(path) | more, path)
        old, new = read(tmp_path / "old"), read(tmp_path / "new")
        assert old.card.imported is not None
        assert old.card.imported.dropped == ("caption_projection.y_embedding",)
        assert old.weights.keys() == new.weights.keys()
        assert all(old.weights[name].equal(new.weights[name]) for name in new.weights)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def make_pipeline(
    autoencoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, Path]]:
    """make_pipeline(name, scheduler, **transformer): a PixArt pipeline without its encoder, and where it was saved."""
    import diffusers

    def make(name: str = "PixArtAlphaPipeline", scheduler: Any = None, **transformer: Any) -> tuple[Any, Path]:
        pipeline = getattr(diffusers, name)(
            tokenizer=None,
            text_encoder=None,
            vae=diffusers.AutoencoderKL.from_pretrained(autoencoder_folder, low_cpu_mem_usage=False),
            transformer=random_pixart(**transformer),
            scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        )
        pipeline.set_progress_bar_config(disable=True)
        folder = tmp_path_factory.mktemp("pipeline")
        pipeline.save_pretrained(folder)
        return pipeline, folder

    return make


@pytest.fixture(scope="module")
def saved_pipeline(make_pipeline: Callable[..., tuple[Any, Path]]) -> tuple[Any, Path]:
    """Tests leave it as it is."""
    return make_pipeline()


class TestPipeline:
    """PixArtAlphaPipeline and PixArtSigmaPipeline."""

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of diffusers' own use of numpy.
    @pytest.mark.parametrize("as_published", [True, False], ids=["DPM-Solver++", "DDIM"])
    @pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "PixArtSigmaPipeline"])
    def test_the_guided_ode_is_the_pipelines(
        self, name: str, make_pipeline: Callable[..., tuple[Any, Path]], *, as_published: bool
    ) -> None:
        from diffusers import DPMSolverMultistepScheduler

        pipeline, folder = make_pipeline(name, DPMSolverMultistepScheduler() if as_published else None)
        prompts, noise = given(), latents()
        null = prompts.null.expand(3, -1, -1)
        drawn = pipeline(
            prompt_embeds=captions(),
            prompt_attention_mask=MASK,
            negative_prompt=None,
            negative_prompt_embeds=torch.cat([null, torch.full((3, 3, 10), 9.0)], 1),
            negative_prompt_attention_mask=torch.tensor([[1, 1, 0, 0, 0]] * 3),
            latents=noise.clone(),
            num_inference_steps=8,
            guidance_scale=4.5,
            use_resolution_binning=False,
            output_type="latent",
        ).images
        published = read(folder)
        teacher = Teacher(built(published), published.card.diffusion, None, "0" * 16, -1)
        ode = plan_ode(teacher, num_teacher_steps=8, guidance=Guidance(cfg_scale=4.5))
        solved = solve_pf_ode(teacher, noise, prompts, ode=ode, kept=(0, 8)).x_t[:, -1]
        torch.testing.assert_close(solved, drawn, rtol=0, atol=1e-5 * drawn.abs().max().item())

    def test_it_brings_its_schedule_its_autoencoder_and_the_size_of_its_pictures(
        self, make_pipeline: Callable[..., tuple[Any, Path]], tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(make_pipeline(use_additional_conditions=True)[1], tmp_path / "pipeline"))
        change(folder / "vae/config.json", scaling_factor=0.13025)
        card = read(folder).card
        assert card.diffusion == Diffusion(
            kind=DiffusionKind.VP, spacing=TimeSpacing.TRAILING, sampler=Sampler(strides=True)
        )
        assert card.imported is not None
        assert (card.imported.cfg_channels, card.imported.scaling_factor) == (-1, 0.13025)
        assert card.network.text == TextConfig(width=10, picture_size=16)  # This autoencoder doubles the side.
        assert read(folder / "transformer").card.imported.scaling_factor is None  # alpha's or Sigma's


NETWORK = "transformer/config.json"
QUERY = "transformer_blocks.1.attn2.to_q.weight"


def changed(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / file, **changes)


def with_weights(spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "transformer/diffusion_pytorch_model.safetensors"
        save_file(spoil(load_file(path)), path)

    return apply


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another network": (
        changed(NETWORK, _class_name="SD3Transformer2DModel"),
        "_class_name is SD3Transformer2DModel; allowed: DiTTransformer2DModel, Transformer2DModel, PixArtTransf",
    ),
    "no text": (changed(NETWORK, caption_channels=None), "caption_channels is None; the width of the text encoder"),
    "another norm": (changed(NETWORK, norm_eps=1e-5), "norm_eps is 1e-05; allowed: 1e-06"),
    "another attention": (changed(NETWORK, attention_type="gated"), "attention_type is gated; allowed: default"),
    "another text width": (changed(NETWORK, cross_attention_dim=30), "cross_attention_dim is 30; allowed: 24"),
    "another schedule": (
        changed("scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        "beta_schedule is 'sigmoid'; allowed: linear",
    ),
    "no levels": (changed("vae/config.json", block_out_channels=8), "block_out_channels is 8; a list of numbers"),
    "a missing tensor": (
        with_weights(lambda weights: {name: one for name, one in weights.items() if name != QUERY}),
        f"lacks {QUERY}",
    ),
    "an extra tensor": (
        with_weights(lambda weights: {**weights, "adapter.weight": torch.ones(1)}),
        "has extra adapter.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    saved_pipeline: tuple[Any, Path], tmp_path: Path, case: str
) -> None:
    spoil, words = REFUSALS[case]
    folder = Path(shutil.copytree(saved_pipeline[1], tmp_path / "pipeline"))
    spoil(folder)
    with pytest.raises(InputError) as refusal:
        read(folder)
    message = str(refusal.value)
    assert words in message
    assert str(folder) in message
    assert "\n" not in message
