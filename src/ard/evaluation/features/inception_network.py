"""Inception-v3 (Szegedy et al., 2016, Figures 5 to 10) as the graph of 2015-12-05 has it, under its published names.

The graph differs from the paper and from later releases: 1008 classes, averages that leave out the padding, a maximum
in the last block's pool, and TensorFlow 1's bilinear resize inside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299
NUM_CLASSES = 1008
WIDTH = 2048
SPATIAL_CHANNELS = 7
SPATIAL_BLOCK = ("Mixed_6d", "branch1x1")
"""TensorFlow's mixed_6 is the checkpoint's Mixed_6d, and the convolution without a number in it the 1 x 1 branch."""

Maps = Float[Tensor, "batch _channel _height _width"]


class Pool(Enum):
    """What a branch does before its convolutions."""

    NONE = "none"
    AVERAGE = "average"  # 3 x 3 at every place.
    MAXIMUM = "maximum"  # The same.
    SHRINK = "shrink"  # The maximum of 3 x 3 at every second place, without padding.


@dataclass(frozen=True)
class Layer:
    """A convolution without bias, its batch norm and a ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True
    """Whether the output of stride 1 has the input's size; shrinking layers are not padded."""


@dataclass(frozen=True)
class Branch:
    """A pool, a chain of layers, and maybe layers side by side on what the chain gives."""

    chain: tuple[Layer, ...] = ()
    pool: Pool = Pool.NONE
    fork: tuple[Layer, ...] = ()


def _shrinking(name: str, channels: int) -> Layer:
    return Layer(name, channels, (3, 3), stride=2, padded=False)


def _pooled(channels: int, pool: Pool = Pool.AVERAGE) -> Branch:
    return Branch((Layer("branch_pool", channels),), pool)


def _coarse(pooled: int) -> tuple[Branch, ...]:
    """A block at 35 x 35 (Figure 5)."""
    return (
        Branch((Layer("branch1x1", 64),)),
        Branch((Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5)))),
        Branch(
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                Layer("branch3x3dbl_3", 96, (3, 3)),
            )
        ),
        _pooled(pooled),
    )


def _factored(width: int) -> tuple[Branch, ...]:
    """A block at 17 x 17, 7 x 7 convolutions as rows and columns (Figure 6)."""
    row, column = (1, 7), (7, 1)
    return (
        Branch((Layer("branch1x1", 192),)),
        Branch(
            (
                Layer("branch7x7_1", width),
                Layer("branch7x7_2", width, row),
                Layer("branch7x7_3", 192, column),
            )
        ),
        Branch(
            (
                Layer("branch7x7dbl_1", width),
                Layer("branch7x7dbl_2", width, column),
                Layer("branch7x7dbl_3", width, row),
                Layer("branch7x7dbl_4", width, column),
                Layer("branch7x7dbl_5", 192, row),
            )
        ),
        _pooled(192),
    )


def _wide(pool: Pool) -> tuple[Branch, ...]:
    """A block at 8 x 8, whose 3 x 3 convolutions are a row beside a column (Figure 7)."""
    row, column = (1, 3), (3, 1)
    return (
        Branch((Layer("branch1x1", 320),)),
        Branch(
            (Layer("branch3x3_1", 384),),
            fork=(Layer("branch3x3_2a", 384, row), Layer("branch3x3_2b", 384, column)),
        ),
        Branch(
            (Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3))),
            fork=(Layer("branch3x3dbl_3a", 384, row), Layer("branch3x3dbl_3b", 384, column)),
        ),
        _pooled(192, pool),
    )


STEM: tuple[Layer | Pool, ...] = (
    _shrinking("Conv2d_1a_3x3", 32),
    Layer("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    Pool.SHRINK,
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    Pool.SHRINK,
)
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _coarse(32),
    "Mixed_5c": _coarse(64),
    "Mixed_5d": _coarse(64),
    "Mixed_6a": (
        Branch((_shrinking("branch3x3", 384),)),
        Branch(
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                _shrinking("branch3x3dbl_3", 96),
            )
        ),
        Branch(pool=Pool.SHRINK),
    ),
    "Mixed_6b": _factored(128),
    "Mixed_6c": _factored(160),
    "Mixed_6d": _factored(160),
    "Mixed_6e": _factored(192),
    "Mixed_7a": (
        Branch((Layer("branch3x3_1", 192), _shrinking("branch3x3_2", 320))),
        Branch(
            (
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                _shrinking("branch7x7x3_4", 192),
            )
        ),
        Branch(pool=Pool.SHRINK),
    ),
    "Mixed_7b": _wide(Pool.AVERAGE),
    "Mixed_7c": _wide(Pool.MAXIMUM),
}


class InceptionOutput(NamedTuple):
    """What ADM's evaluator takes from the network."""

    pool3: Float[Tensor, "batch 2048"]
    """pool_3:0, the average over the last feature map."""
    spatial: Float[Tensor, "batch 2023"]
    """mixed_6/conv:0 after its ReLU: the first 7 channels of 17 x 17, flattened with channels last, as TensorFlow."""
    probabilities: Float[Tensor, "batch 1008"]
    """softmax(pool_3 W): all 1008 outputs, without the layer's bias."""


class InceptionNetwork(nn.Module):
    """The network; its parameters have the names of pt_inception-2015-12-05."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for layer in STEM:
            if isinstance(layer, Layer):
                self.add_module(layer.name, Convolution(layer, channels))
                channels = layer.channels
        for name, branches in BLOCKS.items():
            block = Mixed(branches, channels)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> InceptionOutput:
        """The features of pictures of any size."""
        x = (resized(pixels.float(), SIZE) - 128) / 128  # batch 3 299 299
        for layer in STEM:
            x = pooled(x, layer) if isinstance(layer, Pool) else self.get_submodule(layer.name)(x)
        spatial = x
        for name in BLOCKS:
            if name == SPATIAL_BLOCK[0]:
                spatial = self.get_submodule(".".join(SPATIAL_BLOCK))(x)  # batch 192 17 17
            x = self.get_submodule(name)(x)
        pool3 = x.mean(dim=(2, 3))  # batch 2048, of 8 x 8
        return InceptionOutput(
            pool3,
            spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),
            functional.linear(pool3, self.fc.weight).softmax(dim=1),
        )


class Mixed(nn.Module):
    """Branches on the same maps, side by side in the output's channels."""

    def __init__(self, branches: tuple[Branch, ...], channels: int) -> None:
        super().__init__()
        self.branches, self.channels = branches, 0
        for branch in branches:
            width = channels
            for layer in branch.chain:
                self.add_module(layer.name, Convolution(layer, width))
                width = layer.channels
            for layer in branch.fork:
                self.add_module(layer.name, Convolution(layer, width))
            self.channels += sum(layer.channels for layer in branch.fork) or width

    def forward(self, x: Maps) -> Maps:
        """The maps of all branches."""
        return torch.cat([part for branch in self.branches for part in self._parts(branch, x)], dim=1)

    def _parts(self, branch: Branch, x: Maps) -> Iterator[Maps]:
        """What one branch gives: its chain's maps or, of those, each that lies side by side at its end."""
        x = pooled(x, branch.pool)
        for layer in branch.chain:
            x = self.get_submodule(layer.name)(x)
        yield from (self.get_submodule(layer.name)(x) for layer in branch.fork)
        if not branch.fork:
            yield x


class Convolution(nn.Module):
    """A `Layer` with its weights."""

    def __init__(self, layer: Layer, channels: int) -> None:
        super().__init__()
        rows, columns = layer.kernel
        padding = (rows // 2, columns // 2) if layer.padded else (0, 0)
        self.conv = nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=0.001)

    def forward(self, x: Maps) -> Maps:
        """relu(bn(conv(x)))."""
        return functional.relu(self.bn(self.conv(x)))


def pooled(x: Maps, pool: Pool) -> Maps:
    """`x` after a pool; an average at the border is one over the places inside."""
    match pool:
        case Pool.NONE:
            return x
        case Pool.AVERAGE:
            return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        case Pool.MAXIMUM:
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        case Pool.SHRINK:
            return functional.max_pool2d(x, 3, stride=2)


def resized(images: Maps, size: int) -> Maps:
    """Bilinear as TensorFlow 1 does it: place i of the output is place i * in / out, without antialiasing."""
    for axis in (2, 3):
        length = images.shape[axis]
        places = torch.arange(size, dtype=torch.float64, device=images.device) * length / size
        low = places.floor().long()
        share = (places - low).to(images).view([-1 if dim == axis else 1 for dim in range(4)])
        left, right = (images.index_select(axis, one) for one in (low, (low + 1).clamp(max=length - 1)))
        images = left + (right - left) * share
    return images
