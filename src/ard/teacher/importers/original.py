"""DiT's, SiT's and REPA's own sampling, written from their equations on their own tensors: to check imports by.

It shares nothing with our networks and solvers, and is slow.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, silu

from ard.core.model_folder import StateDict
from ard.core.types import Latents
from ard.networks.transformer import TransformerConfig
from ard.teacher.teacher import SourceFormat

Predict: TypeAlias = Callable[[Latents, float], Latents]  # The guided output at the time that the network is fed.


def draw(kind: SourceFormat, predict: Predict, noise: Latents, steps: int) -> Latents:
    """What the published sampler makes of `noise` in `steps` steps: DiT's DDIM, or Euler's on the flow's ODE."""
    if kind is SourceFormat.DIT:
        return _ddim(predict, noise, steps)
    x, times = noise, torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    if kind is SourceFormat.REPA:
        times = times[::-1]
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * predict(x, t)
    return x


def _ddim(predict: Predict, x: Latents, steps: int) -> Latents:
    """DDIM without noise on DiT's own choice of its 1000 times (Song et al., 2021, Eq. 12)."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0).tolist()
    times = [round(999 * step / (steps - 1)) for step in reversed(range(steps))]
    for t, t_next in pairwise([*times, None]):
        now, then = alpha_bar[t or 0], 1.0 if t_next is None else alpha_bar[t_next]
        eps = predict(x, float(t or 0))
        x = then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps
    return x


def forward(w: StateDict, network: TransformerConfig, x: Latents, t: float, label: Tensor) -> Latents:
    """The network's output from the tensors `w` under their published names, its variance left out."""
    patch, grid, width = network.patch_size, network.grid, network.width

    def layer(value: Tensor, name: str) -> Tensor:
        return linear(value, w[f"{name}.weight"].float(), w[f"{name}.bias"].float())

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return layer_norm(value, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    patches = conv2d(x, w["x_embedder.proj.weight"].float(), w["x_embedder.proj.bias"].float(), stride=patch)
    tokens = patches.flatten(2).transpose(1, 2) + _positions(width, grid)
    angles = t * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = layer(silu(layer(torch.cat([angles.cos(), angles.sin()]), "t_embedder.mlp.0")), "t_embedder.mlp.2")
    table = w.get("y_embedder.embedding_table.weight")
    c = silu(time + (table.float()[label] if table is not None else torch.zeros(len(x), width)))
    for block in range(network.depth):
        name = f"blocks.{block}"
        s1, k1, g1, s2, k2, g2 = layer(c, f"{name}.adaLN_modulation.1").chunk(6, 1)
        qkv = layer(norm(tokens, s1, k1), f"{name}.attn.qkv").unflatten(2, (3, network.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        tokens = tokens + g1[:, None] * layer(attended, f"{name}.attn.proj")
        hidden = gelu(layer(norm(tokens, s2, k2), f"{name}.mlp.fc1"), approximate="tanh")
        tokens = tokens + g2[:, None] * layer(hidden, f"{name}.mlp.fc2")
    out = layer(norm(tokens, *layer(c, "final_layer.adaLN_modulation.1").chunk(2, 1)), "final_layer.linear")
    picture = out.view(len(x), grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return picture.reshape(len(x), -1, grid * patch, grid * patch)[:, : network.channels]


def _positions(width: int, grid: int) -> Tensor:
    """MAE's table: half of it for the column, half for the row, each sines before cosines."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = one.repeat(grid, 1), one.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1).float()
