"""LoRA adapters beside a published network: merged, it is what peft computes with them; anything else is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.networks.transformer import Transformer
from ard.teacher.importers import Choice, read_published

LABEL, TIMES = torch.tensor([4, 0]), torch.tensor([700, 20])
TARGETS = ["to_q", "to_out.0", "ff.net.2"]


def latents() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
@torch.no_grad()
def base(tmp_path: Path) -> tuple[Any, Path]:
    """A random DiT of diffusers and its folder."""
    import diffusers

    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=7
    ).eval()
    for parameter in network.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape))
    first = network.transformer_blocks[0].norm1.emb
    network.transformer_blocks[1].norm1.emb.load_state_dict(first.state_dict())
    network.save_pretrained(tmp_path / "base")
    return network, tmp_path / "base"


@torch.no_grad()
def adapted(network: Any, folder: Path, **settings: Any) -> Path:
    """Adapters in the network, which change what it does, and their folder as peft saves it."""
    import peft

    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "target_modules": TARGETS, **settings})
    wrapped = peft.get_peft_model(network, config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    wrapped.save_pretrained(folder)
    return folder


def output_of(folder: Path, lora: Path) -> tuple[Tensor, tuple[str, ...]]:
    card, weights = read_published(folder, Choice(lora=lora))
    network = Transformer(card.network).eval()
    network.load_state_dict(weights)
    assert card.imported is not None
    with torch.no_grad():
        return network(latents(), TIMES.float(), LABEL), card.imported.notes


@pytest.mark.filterwarnings("ignore")  # Of peft, about a base that it cannot look up.
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_network_with_an_adapter_of_peft_is_what_peft_computes(
    base: tuple[Any, Path], tmp_path: Path, *, use_rslora: bool
) -> None:
    network, folder = base
    with torch.no_grad():
        before = network(latents(), TIMES, LABEL).sample
    lora = adapted(network, tmp_path / "lora", use_rslora=use_rslora)
    with torch.no_grad():
        wanted = network(latents(), TIMES, LABEL).sample
    output, notes = output_of(folder, lora)
    assert (wanted - before).norm() > 0.01 * before.norm()
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    assert notes == ("LoRA: adapter_model.safetensors merged into 6 layers, rank 3",)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["metadata", "alpha", "nothing"])
def test_adapters_of_diffusers_are_read_with_the_scale_that_their_file_says(
    base: tuple[Any, Path], tmp_path: Path, form: str
) -> None:
    network, folder = base
    lora = adapted(network, tmp_path / "lora", lora_alpha=3 if form == "nothing" else 6)
    with torch.no_grad():
        wanted = network(latents(), TIMES, LABEL).sample
    saved = load_file(lora / "adapter_model.safetensors")
    saved = {name.replace("base_model.model.", "transformer."): one for name, one in saved.items()}
    if form == "alpha":
        layers = {name.rpartition(".lora_")[0] for name in saved}
        saved = {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): one for name, one in saved.items()}
        saved |= {f"{layer}.alpha": torch.tensor(6.0) for layer in layers}
    told = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 6})} if form == "metadata" else None
    save_file(saved, tmp_path / "pytorch_lora_weights.safetensors", told)
    output, _ = output_of(folder, tmp_path / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def part(layer: str, *, rank: int = 2, rows: int = 24, columns: int = 24) -> dict[str, Tensor]:
    return {
        f"transformer.{layer}.lora_A.weight": torch.ones(rank, columns),
        f"transformer.{layer}.lora_B.weight": torch.ones(rows, rank),
    }


QUERY = "transformer_blocks.0.attn1.to_q"
REFUSALS: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "another network": (lambda: part("blocks.0.other"), "adapts transformer.blocks.0.other, which .* does not have"),
    "another shape": (lambda: part(QUERY, rows=20), f"does not fit the shape of {QUERY}.weight"),
    "half": (lambda: dict(list(part(QUERY).items())[:1]), "has half an adapter of transformer.transformer_blocks"),
    "DoRA": (
        lambda: part(QUERY) | {f"{QUERY}.lora_magnitude_vector": torch.ones(24)},
        "lora_magnitude_vector, which is no part of a LoRA adapter; merge it where it was trained",
    ),
    "no numbers": (
        lambda: part(QUERY) | {f"transformer.{QUERY}.lora_B.weight": torch.full((24, 2), float("nan"))},
        "has NaN or infinity in",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_merged_is_refused(base: tuple[Any, Path], tmp_path: Path, case: str) -> None:
    make, words = REFUSALS[case]
    save_file(make(), tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match=words):
        output_of(base[1], tmp_path / "pytorch_lora_weights.safetensors")


def test_an_adapter_alone_is_named_as_what_it_is(base: tuple[Any, Path], tmp_path: Path) -> None:
    save_file(part(QUERY), tmp_path / "adapter_model.safetensors")
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(InputError, match="is a LoRA adapter, no network; name the network"):
            read_published(source, Choice())
    with pytest.raises(InputError, match=r"has no adapter_config\.json beside it"):
        output_of(base[1], tmp_path)
    names = ("base_layer.weight", "lora_A.default.weight")
    torch.save({f"blocks.0.attn.qkv.{name}": torch.ones(2, 2) for name in names}, tmp_path / "DiT.pt")
    with pytest.raises(InputError, match="has LoRA adapters among its layers; name the network"):
        read_published(tmp_path / "DiT.pt", Choice())
