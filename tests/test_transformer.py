"""The network against constructions of its own: patches, embeddings, adaLN-Zero, and a forward written out by hand."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ard.core.errors import InputError
from ard.networks.dit_layers import LabelEmbedder, TimestepEmbedder, attend_self, modulate, sincos_positions
from ard.networks.transformer import SIZES, Transformer, TransformerConfig, initialise, named_config

MakeNetwork = Callable[..., Transformer]
MakeLatents = Callable[..., Tensor]


def inputs(make_latents: MakeLatents, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return make_latents(rows), torch.linspace(3, 970, rows, dtype=torch.float64), torch.arange(rows) % 6


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_unpatchify_undoes_the_patches(patch_size: int, make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    features = 2 * patch_size**2
    network = make_network(width=128, patch_size=patch_size)
    with torch.no_grad():  # An embedder that only reorders (c, ph, pw) to the output's (ph, pw, c).
        order = torch.arange(features).view(2, patch_size, patch_size).permute(1, 2, 0).flatten()
        network.x_embedder.weight.zero_()[torch.arange(features), order] = 1
        network.x_embedder.bias.zero_()
    x = make_latents(3)
    patches = (network.embed(x) - network.pos_embed)[:, :, :features]
    torch.testing.assert_close(network.unpatchify(patches), x, rtol=0, atol=1e-14)


def test_tokens_run_along_the_rows_of_patches(make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, x = make_network(), make_latents(1)
    changed = x.clone()
    changed[:, :, 0:4, 4:8] += 1  # The upper right patch is the second token of four.
    moved = (network.embed(changed) - network.embed(x)).abs().sum(dim=(0, 2))
    assert (moved > 0).tolist() == [False, True, False, False]


def test_embedding_patches_is_a_convolution(make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, x = make_network(), make_latents(3)
    kernel = network.x_embedder.weight.view(16, 2, 4, 4)
    convolved = nn.functional.conv2d(x, kernel, network.x_embedder.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.embed(x), convolved + network.pos_embed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("width", "grid"), [(8, 3), (16, 4), (1152, 16)])
def test_positions_are_sines_then_cosines_of_the_column_then_of_the_row(width: int, grid: int) -> None:
    wanted = np.empty((grid * grid, width))
    half, quarter = width // 2, width // 4
    for token in range(grid * grid):
        for start, place in ((0, token % grid), (half, token // grid)):
            for i in range(quarter):
                angle = place / 10000 ** (i / quarter)
                wanted[token, start + i], wanted[token, start + quarter + i] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sincos_positions(width, grid), wanted, rtol=0, atol=1e-6)


def sinusoids(embedder: TimestepEmbedder, t: Tensor) -> Tensor:
    """What the embedder feeds to its two layers."""
    fed: list[Tensor] = []
    handle = embedder.mlp.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    embedder(t)
    handle.remove()
    return fed[0]


def test_the_time_is_embedded_by_cosines_then_sines() -> None:
    t = torch.tensor([0.0, 1.0, 37.5, 999.0], dtype=torch.float64)
    angles = np.outer(t, 10000.0 ** (-np.arange(128) / 128))
    wanted = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(sinusoids(TimestepEmbedder(16).double(), t), wanted, rtol=0, atol=1e-3)
    np.testing.assert_allclose(sinusoids(TimestepEmbedder(16).double(), t[:2]), wanted[:2], rtol=0, atol=1e-6)


def test_the_angles_of_the_time_are_exact_in_a_half_precision_network() -> None:
    embedder, t = TimestepEmbedder(16), torch.tensor([3.0, 500.0, 999.0])
    exact = sinusoids(embedder, t)
    rounded = sinusoids(embedder.bfloat16(), t).float()
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1e-2)  # bf16's rounding of a value up to 1.


def test_the_last_row_of_the_labels_stands_for_no_class() -> None:
    table = LabelEmbedder(5, 16)
    assert table(torch.tensor([5])).equal(table.embedding_table.weight[5:])
    assert table.embedding_table.num_embeddings == 6


def test_modulate_normalises_then_scales_and_shifts_per_row() -> None:
    generator, shapes = torch.Generator().manual_seed(0), ((3, 4, 16), (3, 16), (3, 16))
    x, shift, scale = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    wanted = normal * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(modulate(x, shift, scale), wanted, rtol=0, atol=1e-12)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("rhqe,rhke->rhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("rhqk,rhke->rhqe", scores.softmax(-1), v)


def written_out(network: Transformer, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """DiT's forward (Peebles and Xie, 2023, Figure 3) from the weights alone."""
    w, rows, grid = network.state_dict(), len(x), network.config.grid

    def linear(value: Tensor, name: str) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(value: Tensor) -> Tensor:
        return value / (1 + (-value).exp())

    def gelu(value: Tensor) -> Tensor:
        return value / 2 * (1 + ((2 / torch.pi) ** 0.5 * (value + 0.044715 * value**3)).tanh())

    c = linear(silu(linear(sinusoids(network.t_embedder, t), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = silu(c + w["y_embedder.embedding_table.weight"][label])
    patches = x.view(rows, 2, grid, 4, grid, 4).permute(0, 2, 4, 1, 3, 5).reshape(rows, grid**2, -1)
    h = linear(patches, "x_embedder") + network.pos_embed
    for i in range(network.config.depth):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(c, f"blocks.{i}.adaLN_modulation.1").split(16, 1)
        q, k, v = linear(modulate(h, shift_a, scale_a), f"blocks.{i}.attn.qkv").split(16, -1)
        q, k, v = (value.view(rows, -1, 2, 8).transpose(1, 2) for value in (q, k, v))
        mixed = softmax_attention(q, k, v).transpose(1, 2).reshape(rows, -1, 16)
        h = h + gate_a[:, None] * linear(mixed, f"blocks.{i}.attn.proj")
        inner = gelu(linear(modulate(h, shift_m, scale_m), f"blocks.{i}.mlp.fc1"))
        h = h + gate_m[:, None] * linear(inner, f"blocks.{i}.mlp.fc2")
    shift, scale = linear(c, "final_layer.adaLN_modulation.1").split(16, 1)
    values = linear(modulate(h, shift, scale), "final_layer.linear")
    return values.view(rows, grid, grid, 4, 4, 2).permute(0, 5, 1, 3, 2, 4).reshape(rows, 2, 8, 8)


def test_the_forward_equals_the_network_written_out(make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, given = make_network(), inputs(make_latents)
    output = network(*given)
    assert output.std() > 0.1
    torch.testing.assert_close(output, written_out(network, *given), rtol=0, atol=1e-11)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_input_matters(part: int, make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, given = make_network(), list(inputs(make_latents))
    before = network(*given)
    given[part] = given[part].flip(0)
    assert (network(*given) - before).abs().max() > 1e-2


def test_a_row_does_not_depend_on_its_batch(make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, given = make_network(), inputs(make_latents, rows=7)
    alone = torch.cat([network(*(value[i : i + 1] for value in given)) for i in range(7)])
    torch.testing.assert_close(network(*given), alone, rtol=0, atol=1e-12)


def test_learned_sigmas_are_dropped(make_network: MakeNetwork, make_latents: MakeLatents) -> None:
    network, given = make_network(learn_sigma=True), inputs(make_latents)
    assert network.final_layer.linear.out_features == 2 * 2 * 4**2
    before = network(*given)
    assert before.shape == given[0].shape
    with torch.no_grad():  # The values of a patch are ordered (ph, pw, c); the last two of four channels are sigmas.
        network.final_layer.linear.bias.view(4, 4, 4)[:, :, 2:] += 7
    assert torch.equal(network(*given), before)
    with torch.no_grad():
        network.final_layer.linear.bias.view(4, 4, 4)[:, :, :2] += 7
    torch.testing.assert_close(network(*given), before + 7)


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity(
    make_network: MakeNetwork, make_latents: MakeLatents
) -> None:
    network, (x, t, label) = initialise(make_network(), torch.Generator().manual_seed(0)), inputs(make_latents)
    tokens, condition = network.embed(x), network.condition(t, label)
    assert tokens.std() > 0.1
    assert condition.std() > 0
    assert torch.equal(network.run_blocks(tokens, condition, attend_self), tokens)
    assert network(x, t, label).abs().max() == 0


def test_initial_weights_have_dits_distributions() -> None:
    config = TransformerConfig(width=64, depth=1, num_heads=2, patch_size=2, latent_size=8, channels=4, num_classes=200)
    network = initialise(Transformer(config), torch.Generator().manual_seed(0))
    xavier = (6 / (64 + 3 * 64)) ** 0.5
    assert 0.95 * xavier < network.blocks[0].attn.qkv.weight.abs().max() <= xavier
    assert network.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(p.abs().max() == 0 for name, p in network.named_parameters() if name.endswith("bias"))


def test_initial_weights_are_a_function_of_the_generator(make_network: MakeNetwork) -> None:
    first, again, other = (initialise(make_network(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.x_embedder.weight, other.x_embedder.weight)


def test_constants_are_not_among_the_weights(make_network: MakeNetwork) -> None:
    assert set(make_network().state_dict()) == {name for name, _ in make_network().named_parameters()}


def test_dit_xl_2_has_the_published_number_of_parameters() -> None:
    config = named_config("DiT-XL/2", latent_size=32, channels=4, num_classes=1000)
    with torch.device("meta"):
        network = Transformer(dataclasses.replace(config, learn_sigma=True))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(674.8e6, rel=1e-3)
    assert f"{(count + network.pos_embed.numel()) / 1e6:.2f}" == "675.13"  # DiT counts its position table.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_every_named_configuration_can_be_built(size: str, patch: int) -> None:
    config = named_config(f"{size}/{patch}", latent_size=8, channels=1, num_classes=10)
    assert (config.patch_size, config.num_tokens) == (patch, (8 // patch) ** 2)
    assert (config.depth, config.width, config.num_heads) == SIZES[size]


@pytest.mark.parametrize("name", ["DiT-XXL/2", "DiT-XL/3", "DiT-XL", "", "tiny/2/2"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(name: str) -> None:
    with pytest.raises(InputError, match=rf"unknown model '{name}'.*tiny.*DiT-XL.*1, 2, 4, 8"):
        named_config(name, latent_size=8, channels=1, num_classes=10)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"patch_size": 3}, "patch size 3.*8"),
        ({"width": 18}, "width 18"),
        ({"width": 20, "num_heads": 3}, "3 heads"),
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"patch_size": -2}, "patch_size is -2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(wrong: dict[str, int], named: str, make_network: MakeNetwork) -> None:
    with pytest.raises(InputError, match=named):
        make_network(**wrong)
