"""Checkpoints of DiT's, SiT's, REPA's and PixArt's own code; the first three have the same tensors.

They differ in what they predict. x is the data, e the noise, and t the time that the network is fed:

    DiT     x_t = sqrt(abar_t) x + sqrt(1 - abar_t) e     predicts e        t = 0 … 999, PixArt too
    SiT     x_t = t x + (1 - t) e                         predicts x - e    t = 0 (noise) … 1 (data)
    REPA    x_t = (1 - t) x + t e                         predicts e - x    t = 1 (noise) … 0 (data)
"""

import re
from pathlib import Path

import torch

from ard.core.errors import InputError
from ard.core.model_folder import StateDict
from ard.diffusion.process import Diffusion, DiffusionKind, FlowClock
from ard.networks.transformer import TransformerConfig
from ard.teacher.importers.adapter import merged_with, refuse_adapters
from ard.teacher.importers.choice import Choice
from ard.teacher.importers.pixart_checkpoint import read_pixart_tensors
from ard.teacher.importers.recognise import check_options, recognise
from ard.teacher.importers.shapes import Told, classes_of, depth_of, heads_of, latent_size_of, learns_sigma
from ard.teacher.importers.tensors import (
    PUBLISHED_CLASSES,
    SCALING_FACTOR,
    Brought,
    Published,
    check_positions,
    find_network,
    our_names,
    read_saved,
    renamed,
    shape_of,
)
from ard.teacher.teacher import Imported, SourceFormat, TeacherCard

DIFFUSIONS = {
    SourceFormat.DIT: Diffusion(kind=DiffusionKind.VP),
    SourceFormat.SIT: Diffusion(kind=DiffusionKind.FLOW, clock=FlowClock.REVERSED),
    SourceFormat.REPA: Diffusion(kind=DiffusionKind.FLOW, clock=FlowClock.PLAIN),
    SourceFormat.PIXART: Diffusion(kind=DiffusionKind.VP),
}
# What each one's own sampler guides.
GUIDED = {SourceFormat.DIT: 3, SourceFormat.SIT: 3, SourceFormat.REPA: -1, SourceFormat.PIXART: -1}
ANCHOR, TABLE = "x_embedder.proj.weight", "y_embedder.embedding_table.weight"


def read_checkpoint(path: Path, choice: Choice) -> Published:
    """The teacher in a checkpoint; InputError for another network, and for what its tensors cannot tell."""
    saved = read_saved(path)
    for group in saved.groups.values():
        refuse_adapters(group, path)
    if any("transformer_blocks.0." in name for group in saved.groups.values() for name in group):
        raise InputError(f"{path} is a model's file of diffusers; name its folder, which says what it is")
    found = find_network(saved, ANCHOR, choice.weights_key, path)
    check_options(saved.options, path)
    kind = recognise(found.tensors, saved.options, path, choice.format)
    told = Told(saved.options, choice, path)
    read = read_pixart_tensors if kind is SourceFormat.PIXART else _read_dit
    tensors, merged = merged_with(choice.lora, found.tensors, path)
    network, weights, dropped, notes = read(dict(tensors), told, kind)
    imported = Imported(
        format=kind,
        source=path.name,
        cfg_channels=min(GUIDED[kind], network.channels),
        dropped=dropped,
        scaling_factor=SCALING_FACTOR if is_published(network) else None,
        vae=None,
        class_names=(),
        notes=(*found.notes, *merged, *notes),
    )
    return Published(TeacherCard(network=network, diffusion=DIFFUSIONS[kind], imported=imported), weights)


def is_published(network: TransformerConfig) -> bool:
    """Whether a network has the latents and classes of those that were published, and so probably their autoencoder."""
    return network.channels == 4 and network.num_classes == PUBLISHED_CLASSES


def _read_dit(tensors: StateDict, told: Told, kind: SourceFormat) -> Brought:
    """A DiT, SiT or REPA."""
    dropped = tuple(name for name in tensors if kind is SourceFormat.REPA and name.startswith("projectors."))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if any(re.match(r"blocks\.\d+\.attn\.[qk]_norm\.", name) for name in tensors):
        raise InputError(
            f"{told.where} has extra q_norm and k_norm: it was trained with --qk-norm, which is not supported"
        )
    unconditional = not any(name.startswith("y_embedder.") for name in tensors)
    if unconditional:
        tensors[TABLE] = torch.zeros(1, shape_of(tensors, ANCHOR, 4, told.where)[0])
    network, notes = _network(tensors, told)
    if unconditional:
        notes.append("classes: none, an unconditional network; it has one class here, which adds nothing")
    if (positions := tensors.pop("pos_embed", None)) is not None:
        check_positions(positions, network, told.where)
    sources = {name: (name.replace("x_embedder.", "x_embedder.proj."),) for name in our_names(network)}
    weights = renamed(tensors, sources, network, told.where)
    if kind is SourceFormat.SIT:  # x - e becomes our e - x.
        weights |= {name: -weights[name] for name in ("final_layer.linear.weight", "final_layer.linear.bias")}
    return Brought(network, weights, dropped, tuple(notes))


def _network(tensors: StateDict, told: Told) -> tuple[TransformerConfig, list[str]]:
    """The network's shape, with what people are told of it."""
    width, channels, patch_size, _ = shape_of(tensors, ANCHOR, 4, told.where)
    classes = classes_of(shape_of(tensors, TABLE, 2, told.where)[0], told)
    hidden, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2, told.where)
    out_features, _ = shape_of(tensors, "final_layer.linear.weight", 2, told.where)
    heads, note = heads_of(width, depth_of(tensors), told)
    network = TransformerConfig(
        width=width,
        depth=depth_of(tensors),
        num_heads=heads,
        patch_size=patch_size,
        latent_size=latent_size_of(tensors, patch_size, told),
        channels=channels,
        num_classes=classes.num,
        mlp_ratio=hidden / width,
        learn_sigma=learns_sigma(out_features, channels * patch_size**2, told.where),
        null_class=classes.null,
    )
    return network, [text for text in (note, classes.note) if text]
