"""Checkpoints of DiT's, SiT's and REPA's own code. All three have the same tensors, and differ in what they predict.

x is the data, e the noise, and t the time that the network is fed:

    DiT     x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e     predicts e        t = 0 … 999
    SiT     x_t = t x + (1 - t) e                         predicts x - e    t = 0 (noise) … 1 (data)
    REPA    x_t = (1 - t) x + t e                         predicts e - x    t = 1 (noise) … 0 (data)
"""

import math
import re
from pathlib import Path
from typing import Any

from ard.diffusion import Diffusion, DiffusionKind, FlowClock
from ard.errors import InputError
from ard.models.transformer import SIZES, TransformerConfig
from ard.models.weights import StateDict
from ard.published.tensors import (
    SCALING_FACTOR,
    Loaded,
    Published,
    check_positions,
    our_names,
    read_tensors,
    renamed,
    shape_of,
)
from ard.teacher import Imported, SourceFormat, TeacherCard

DIFFUSIONS = {
    SourceFormat.DIT: Diffusion(kind=DiffusionKind.VP),
    SourceFormat.SIT: Diffusion(kind=DiffusionKind.FLOW, clock=FlowClock.REVERSED),
    SourceFormat.REPA: Diffusion(kind=DiffusionKind.FLOW, clock=FlowClock.PLAIN),
}
GUIDED = {SourceFormat.DIT: 3, SourceFormat.SIT: 3, SourceFormat.REPA: -1}  # What each one's own sampler guides.
HEADS = {width: heads for name, (_, width, heads) in SIZES.items() if name.startswith("DiT")}
PATH_AND_PREDICTION = {("linear", "velocity"), ("linear", "v")}  # SiT's and REPA's names of what is read here.


def read_checkpoint(path: Path, *, told: SourceFormat | None, num_heads: int | None) -> Published:
    """The teacher in a checkpoint; InputError for another network, and for what its tensors cannot tell."""
    loaded = read_tensors(path)
    kind = told or recognise(loaded, path)
    _check_options(loaded.options, kind, path)
    dropped = tuple(name for name in loaded.tensors if kind is SourceFormat.REPA and name.startswith("projectors."))
    tensors = {name: tensor for name, tensor in loaded.tensors.items() if name not in dropped}
    network = network_of(tensors, loaded.options, num_heads=num_heads, where=path)
    check_positions(tensors.pop("pos_embed"), network, path)
    weights = renamed(tensors, {name: (_source(name),) for name in our_names(network)}, network, path)
    if kind is SourceFormat.SIT:  # x - e becomes our e - x.
        weights |= {name: -weights[name] for name in ("final_layer.linear.weight", "final_layer.linear.bias")}
    imported = Imported(
        format=kind,
        source=path.name,
        cfg_channels=min(GUIDED[kind], network.channels),
        dropped=dropped,
        scaling_factor=SCALING_FACTOR if network.channels == 4 else None,
        vae=None,
        class_names=(),
    )
    return Published(TeacherCard(network=network, diffusion=DIFFUSIONS[kind], imported=imported), weights)


def recognise(loaded: Loaded, path: Path) -> SourceFormat:
    """Whose code wrote a checkpoint, by the training's options, REPA's projectors, or the published file's name."""
    if loaded.options:
        if "path_type" not in loaded.options:
            return SourceFormat.DIT
        return SourceFormat.REPA if "encoder_depth" in loaded.options else SourceFormat.SIT
    named = set(re.findall(r"(?<![a-z])(dit|sit|repa)(?![a-z])", path.stem.lower()))
    if "repa" in named or any(name.startswith("projectors.") for name in loaded.tensors):
        return SourceFormat.REPA
    if len(named) != 1:
        raise InputError(
            f"{path} does not say whose it is, and the tensors of DiT, SiT and REPA are alike; add --format dit, sit "
            "or repa"
        )
    return SourceFormat(named.pop())


def network_of(tensors: StateDict, options: dict[str, Any], *, num_heads: int | None, where: Path) -> TransformerConfig:
    """The network's shape from its tensors' shapes, the heads apart, which only DiT's table tells."""
    width, channels, patch_size, _ = shape_of(tensors, "x_embedder.proj.weight", 4, where)
    _, num_tokens, _ = shape_of(tensors, "pos_embed", 3, where)
    rows, _ = shape_of(tensors, "y_embedder.embedding_table.weight", 2, where)
    hidden, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2, where)
    out_features, _ = shape_of(tensors, "final_layer.linear.weight", 2, where)
    if options.get("num_classes") == rows:
        raise InputError(f"{where} has {rows} classes and no row for no class, which guidance needs")
    if width not in HEADS and num_heads is None:
        raise InputError(f"{where} has the width {width}, which is none of DiT's; say how many --num-heads it has")
    return TransformerConfig(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name)),
        num_heads=num_heads or HEADS[width],
        patch_size=patch_size,
        latent_size=math.isqrt(num_tokens) * patch_size,
        channels=channels,
        num_classes=rows - 1,
        mlp_ratio=hidden / width,
        learn_sigma=learns_sigma(out_features, channels * patch_size**2, where),
    )


def learns_sigma(out_features: int, patch: int, where: Path) -> bool:
    """Whether an output has two numbers for each of the `patch` inputs; InputError when it has neither one nor two."""
    if out_features not in {patch, 2 * patch}:
        raise InputError(
            f"{where} has {out_features} outputs per patch; {patch} or, with a variance, {2 * patch} are read"
        )
    return out_features == 2 * patch


def _check_options(options: dict[str, Any], kind: SourceFormat, where: Path) -> None:
    """InputError for a flow that was trained on another path, or to predict another quantity."""
    if kind is SourceFormat.DIT or "path_type" not in options:
        return
    given = str(options["path_type"]), str(options.get("prediction"))
    if (given[0].lower(), given[1].lower()) not in PATH_AND_PREDICTION:
        raise InputError(
            f"{where} was trained on the path {given[0]} to predict {given[1]}; linear and velocity are read"
        )


def _source(ours: str) -> str:
    """The name of our tensor in a checkpoint: DiT's names are ours, and patches are embedded by a convolution."""
    return ours.replace("x_embedder.", "x_embedder.proj.")
