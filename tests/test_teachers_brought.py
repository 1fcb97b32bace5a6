"""Checkpoints of teachers as people have them: read right, or refused for the right reason."""

import argparse
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ard.core.errors import InputError
from ard.diffusion.process import DiffusionKind, FlowClock
from ard.networks.transformer import TextConfig, Transformer, TransformerConfig
from ard.teacher.importers import Choice, Published, read_published
from ard.teacher.teacher import Guidance, SourceFormat, Teacher, plan_ode, solve_pf_ode

Weights = dict[str, Tensor]
SHAPE = TransformerConfig(
    width=24, depth=2, num_heads=2, patch_size=2, latent_size=8, channels=4, num_classes=7, learn_sigma=True
)
TABLE = "y_embedder.embedding_table.weight"


def network_of(config: TransformerConfig = SHAPE) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape))
    return network


def checkpoint() -> Weights:
    """Random weights under the names of DiT's code."""
    network = network_of()
    weights = {name.replace("x_embedder.", "x_embedder.proj."): one for name, one in network.state_dict().items()}
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].view(24, 4, 2, 2)
    return {"pos_embed": network.pos_embed.unsqueeze(0), **weights}


def read(path: Path, saved: Any, **choice: Any) -> Published:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(saved, path) if path.suffix == ".safetensors" else torch.save(saved, path)
    return read_published(path, Choice(**{"num_heads": 2, **choice}))


def notes_of(published: Published) -> str:
    assert published.card.imported is not None
    return "\n".join(published.card.imported.notes)


def under(*keys: str) -> Callable[[Weights], dict[str, Any]]:
    """The weights below keys, with a training's own things beside them."""

    def nest(weights: Weights) -> dict[str, Any]:
        saved: dict[str, Any] = dict(weights)
        for key in reversed(keys):
            saved = {key: saved, "opt": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": 1e-4}, "step": 7}
        return saved

    return nest


def named(change: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {change(name): one for name, one in weights.items()}


def twice(first: str, second: str) -> Callable[[Weights], dict[str, Any]]:
    """The weights under the first key, other ones under the second."""
    return lambda weights: {second: moved(weights), first: weights}


def moved(weights: Weights) -> Weights:
    return {name: one if name == "pos_embed" else one + 1 for name, one in weights.items()}


FORMS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "DDP": (named("module.{}".format), "stripped from the names: module"),
    "torch.compile": (named("_orig_mod.{}".format), "stripped from the names: _orig_mod"),
    "both": (named("module._orig_mod.{}".format), "stripped from the names: _orig_mod, module"),
    "compiled blocks": (
        named(lambda name: name.replace("blocks.0.", "blocks.0._orig_mod.")),
        "stripped from the names: _orig_mod",
    ),
    "nested": (under("state", "network"), "weights: those under state.network"),
    "Lightning": (lambda w: {"state_dict": named("model.{}".format)(w)}, "weights: those under state_dict.model"),
    "DeepSpeed": (lambda w: {"module": w, "global_steps": 3}, "weights: those under module"),
    "averaged": (twice("ema", "model"), "weights: those under ema, not those under model"),
    "under another name": (twice("model_ema", "model"), "those under model_ema, not those under model"),
    "another": (twice("state_dict_ema", "state_dict"), "those under state_dict_ema, not those under state_dict"),
    "ema-pytorch": (
        lambda w: named("ema_model.{}".format)(w) | named("online_model.{}".format)(moved(w)),
        "weights: those under ema_model, not those under online_model",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_where_trainings_leave_them_and_that_is_said(tmp_path: Path, form: str) -> None:
    wrap, told = FORMS[form]
    published = read(tmp_path / "DiT.pt", wrap(checkpoint()))
    assert all(published.weights[name].equal(one) for name, one in network_of().state_dict().items())
    assert told in notes_of(published)


def test_an_option_names_the_weights_where_several_could_be_meant(tmp_path: Path) -> None:
    saved = twice("first", "second")(checkpoint())
    with pytest.raises(InputError, match="has weights under second, first; say which with --weights-key"):
        read(tmp_path / "DiT.pt", saved)
    chosen = read(tmp_path / "DiT.pt", saved, weights_key="second")
    assert chosen.weights["final_layer.linear.bias"].equal(checkpoint()["final_layer.linear.bias"] + 1)
    with pytest.raises(InputError, match="under second, first; --weights-key third names none"):
        read(tmp_path / "DiT.pt", saved, weights_key="third")
    with pytest.raises(InputError, match="holds shadow, opt; a state dict is expected"):
        read(tmp_path / "DiT.pt", {"shadow": {"a": torch.ones(1)}, "opt": {"b": torch.ones(1)}})


EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *EIGHT_BITS], ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_less_precise_weights_are_read(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    saved = {name: one.to(dtype) for name, one in checkpoint().items()}
    weights = read(tmp_path / f"DiT{suffix}", saved).weights
    assert weights["final_layer.linear.weight"].equal(saved["final_layer.linear.weight"].float())


def test_quantised_weights_and_ones_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    name = "blocks.1.attn.proj.weight"
    with pytest.raises(InputError, match=f"is quantised: whole numbers in {name}"):
        read(tmp_path / "DiT.pt", checkpoint() | {name: torch.ones(24, 24, dtype=torch.int8)})
    for value in (float("nan"), float("-inf")):
        with pytest.raises(InputError, match=f"has NaN or infinity in {name}"):
            read(tmp_path / "DiT.pt", checkpoint() | {name: torch.full((24, 24), value)})


def without_positions(**options: Any) -> dict[str, Any]:
    return {"ema": {name: one for name, one in checkpoint().items() if name != "pos_embed"}, "args": options}


@pytest.mark.parametrize(
    ("options", "choice"),
    [({}, {"latent_size": 8}), ({"input_size": 8}, {}), ({"image_size": 64}, {}), ({"resolution": 64}, {})],
)
def test_a_table_of_positions_that_is_not_there_is_computed(
    tmp_path: Path, options: dict[str, Any], choice: dict[str, Any]
) -> None:
    assert read(tmp_path / "dit.pt", without_positions(**options), **choice).card.network == SHAPE


class Elsewhere:
    """Of a module that nobody else has."""


OPTIONS: dict[str, Any] = {
    "a Namespace with a path": argparse.Namespace(model="DiT-own", data_path=PosixPath("/data/x"), lr=np.float64(1e-4)),
    "a dictionary": {"model": "DiT-own"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_plain_values_are_read(tmp_path: Path, case: str) -> None:
    published = read(tmp_path / "0400000.pt", {"ema": checkpoint(), "args": OPTIONS[case]})
    assert published.card.imported is not None
    assert published.card.imported.format is SourceFormat.DIT


def test_options_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than tensors and plain values \(\w+\.Elsewhere\), and code is never"):
        read(tmp_path / "0400000.pt", {"ema": checkpoint(), "args": Elsewhere()})


DIT, SIT, REPA = SourceFormat.DIT, SourceFormat.SIT, SourceFormat.REPA
FLOW = {"path_type": "Linear"}
# The file's name, its options, --format, and the format that is read or what is refused.
READINGS: dict[str, tuple[str, dict[str, Any], SourceFormat | None, SourceFormat | str]] = {
    "SiT": ("last", FLOW | {"prediction": "velocity"}, None, SIT),
    "REPA": ("last", {"path_type": "linear", "prediction": "v"}, None, REPA),
    "REPA by its projection": ("last", {"path_type": "linear", "proj_coeff": 0.5}, None, REPA),
    "a fork that says neither": ("last", FLOW, None, "does not say whose it is.*add --format repa or sit"),
    "a fork of REPA by its name": ("repa-fork", FLOW, None, REPA),
    "a fork by --format": ("last", FLOW, REPA, REPA),
    "a SiT by its model": ("sit-fork", {"model": "SiT-own"}, None, SIT),
    "a SiT without path": ("last", {"model": "SiT-own"}, None, "add --format repa or sit"),
    "its name lies": (
        "DiT-own",
        {"model": "SiT-own"},
        None,
        r"can be read in two ways \(its option model SiT-own: repa or sit; the name DiT-own.pt: dit\); say which with",
    ),
    "an option decides": ("DiT-own", {"model": "SiT-own"}, SIT, SIT),
    "--format lies": ("last", FLOW | {"prediction": "v"}, DIT, r"path_type Linear: repa or sit; .*--format: dit\)"),
    "options that say nothing": ("last", {"lr": 1e-4}, None, "does not say whose it is"),
    "another path": ("SiT", {"path_type": "GVP", "prediction": "noise"}, None, "trained on the path GVP to predict no"),
    "another path, told": ("last", {"path_type": "VP"}, SIT, "trained on the path VP"),
}


@pytest.mark.parametrize("as_namespace", [True, False], ids=["namespace", "dictionary"])
@pytest.mark.parametrize("case", READINGS)
def test_what_speaks_for_a_format_must_agree(tmp_path: Path, case: str, *, as_namespace: bool) -> None:
    name, options, told, wanted = READINGS[case]
    saved = {"ema": checkpoint(), "args": argparse.Namespace(**options) if as_namespace else options}
    if isinstance(wanted, SourceFormat):
        card = read(tmp_path / f"{name}.pt", saved, format=told).card
        assert card.imported is not None
        assert card.imported.format is wanted
        assert (card.diffusion.kind is DiffusionKind.VP) == (wanted is DIT)
        assert (card.diffusion.clock is FlowClock.REVERSED) == (wanted is SIT)
    else:
        with pytest.raises(InputError, match=wanted):
            read(tmp_path / f"{name}.pt", saved, format=told)


# Attention heads: 384 is the width of DiT-S, whose depth is 12; this network has 2 blocks.
HEADS: dict[str, tuple[str, dict[str, Any], int | None, int | str]] = {
    "by an option": ("dit", {"num_heads": 3}, None, 3),
    "by the user": ("dit", {}, 4, 4),
    "both agree": ("dit", {"num_heads": 4}, 4, 4),
    "they do not": (
        "dit",
        {"num_heads": 3},
        4,
        r"several numbers of attention heads \(--num-heads: 4; option num_heads: 3",
    ),
    "nothing tells": ("dit", {}, None, "has the width 24, which is none of DiT's; say how many --num-heads it has"),
    "a name of another shape": ("DiT-S-2", {"model": "DiT-XL/2"}, None, "say how many --num-heads"),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_are_told_and_not_guessed(tmp_path: Path, case: str) -> None:
    name, options, told, wanted = HEADS[case]
    saved = {"ema": checkpoint(), "args": options}
    if isinstance(wanted, int):
        assert read(tmp_path / f"{name}.pt", saved, num_heads=told).card.network.num_heads == wanted
    else:
        with pytest.raises(InputError, match=wanted):
            read(tmp_path / f"{name}.pt", saved, num_heads=told)


@pytest.mark.parametrize(
    ("options", "choice"), [({"num_classes": 8}, {}), ({"class_dropout_prob": 0}, {}), ({}, {"num_classes": 8})]
)
def test_a_teacher_without_label_dropout_keeps_its_last_class_and_is_not_guided(
    tmp_path: Path, options: dict[str, Any], choice: dict[str, Any]
) -> None:
    published = read(tmp_path / "dit.pt", {"ema": checkpoint(), "args": options}, **choice)
    network = published.card.network
    assert (network.num_classes, network.null_class) == (8, False)
    assert published.weights[TABLE].equal(checkpoint()[TABLE])
    teacher = Teacher(network_of(network), published.card.diffusion, None, "0" * 16)
    with pytest.raises(InputError, match=r"trained without a row for no class, .*give --cfg-scale 1"):
        plan_ode(teacher, num_teacher_steps=2, guidance=Guidance())
    ode = plan_ode(teacher, num_teacher_steps=2, guidance=Guidance(cfg_scale=1.0))
    assert solve_pf_ode(teacher, torch.ones(1, 4, 8, 8), torch.tensor([7]), ode=ode, kept=(2,)).x_t.isfinite().all()


def test_an_unconditional_teacher_has_one_class_that_adds_nothing(tmp_path: Path) -> None:
    saved = {name: one for name, one in checkpoint().items() if not name.startswith("y_embedder")}
    published = read(tmp_path / "dit.pt", saved)
    assert (published.card.network.num_classes, published.card.network.null_class) == (1, False)
    assert published.weights[TABLE].equal(torch.zeros(1, 24))
    assert "an unconditional network" in notes_of(published)


def test_rows_that_fit_neither_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 8 rows for classes, and --num-classes is 5; allowed: 7 with a row"):
        read(tmp_path / "dit.pt", checkpoint(), num_classes=5)


PIXART = {
    "y_embedder.adaLN_single.": "t_block.",
    "y_embedder.size.resolution.": "csize_embedder.",
    "y_embedder.size.aspect_ratio.": "ar_embedder.",
    "y_embedder.fc": "y_embedder.y_proj.fc",
    "cross_attn.q.": "cross_attn.q_linear.",
    "cross_attn.kv.": "cross_attn.kv_linear.",
    "x_embedder.": "x_embedder.proj.",
}


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema"])
@pytest.mark.parametrize(("told_size", "scale", "with_table"), [(None, 1.0, False), (64, 2.0, True), (None, 0.5, True)])
def test_pixarts_own_checkpoints_are_read(
    tmp_path: Path, key: str, told_size: int | None, scale: float, *, with_table: bool
) -> None:
    text = TextConfig(width=10, picture_size=told_size)
    config = TransformerConfig(
        width=24,
        depth=2,
        num_heads=2,
        patch_size=2,
        latent_size=8,
        channels=4,
        num_classes=0,
        learn_sigma=True,
        text=text,
        position_scale=scale,
    )
    network = network_of(config)
    theirs: Weights = {"y_embedder.y_embedding": torch.ones(120, 10)}
    for name, one in network.state_dict().items():
        for mine, published_name in PIXART.items():
            name = name.replace(mine, published_name) if mine in name and published_name not in name else name
        theirs[name] = one
    theirs["x_embedder.proj.weight"] = theirs["x_embedder.proj.weight"].view(24, 4, 2, 2)
    if with_table:
        theirs["pos_embed"] = network.pos_embed.unsqueeze(0)
    published = read(tmp_path / "PixArt-own-512.pth", {key: theirs, "epoch": 3}, latent_size=8)
    assert published.card.network == config
    assert published.card.imported is not None
    assert published.card.imported.format is SourceFormat.PIXART
    assert published.card.imported.dropped == ("y_embedder.y_embedding",)
    assert all(published.weights[name].equal(one) for name, one in network.state_dict().items())


def test_a_file_of_diffusers_asks_for_its_folder(tmp_path: Path) -> None:
    weights = {"transformer_blocks.0.attn1.to_q.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match="is a model's file of diffusers; name its folder"):
        read(tmp_path / "diffusion_pytorch_model.safetensors", weights)
