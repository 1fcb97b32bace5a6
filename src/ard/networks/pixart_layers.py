"""The pieces of a text-conditional transformer: adaLN-single, cross-attention, caption embedder (Chen et al., 2024).

Text is embedded once per image. The steps of a student are rows of their own and share the text of their image: all
queries of an image, whatever its number of steps, read one set of keys.
"""

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from ard.core.types import Heads, Patches, Tokens
from ard.networks.condition import Prompts, TextMask, TextTokens
from ard.networks.dit_layers import Attend, Attention, Computing, Mlp, TimestepEmbedder, Vector, modulate

Text: TypeAlias = Float[Tensor, "prompt text_token embedding"]
TextHeads: TypeAlias = Float[Tensor, "prompt head text_token head_width"]  # A text's keys or values in one block.
Modulation: TypeAlias = Float[Tensor, "row modulation"]  # Shift, scale and gate of a block's both halves, in turn.


class TextKeys(NamedTuple):
    """What a block's cross-attention reads of a text."""

    k: TextHeads
    v: TextHeads
    mask: TextMask


class TextConditioning(NamedTuple):
    """What a time and a text are to the network."""

    vector: Vector
    """The time, and where the network is told it the picture's size; the output layer reads it."""
    modulation: Modulation
    """adaLN-single: the same for all blocks but for their tables."""
    text: Text
    mask: TextMask


Conditioning: TypeAlias = Vector | TextConditioning
"""What the blocks read of a time and a condition: one vector per row, or that and a text per image."""


class CrossAttention(nn.Module):
    """Multi-head attention of an image's tokens to its text."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tokens, text: TextKeys) -> Tokens:
        """`len(x) / len(text.k)` successive rows belong to each text, such as the steps of a trajectory."""
        queries = self.q(x).unflatten(0, (len(text.k), -1)).flatten(1, 2)  # prompt, step x token, d
        q = queries.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # prompt head step x token e
        read = scaled_dot_product_attention(q, text.k, text.v, attn_mask=text.mask[:, None, None, :])
        return self.proj(read.transpose(1, 2).flatten(2)).view(x.shape)

    def keys(self, text: Text, mask: TextMask) -> TextKeys:
        """What it reads of a text; no image and no time enters it."""
        k, v = self.kv(text).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # prompt head text_token e
        return TextKeys(k, v, mask)


class TextBlock(nn.Module):
    """A transformer block with adaLN-single conditioning and cross-attention, which is neither modulated nor gated."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.cross_attn = CrossAttention(width, num_heads)
        self.mlp = Mlp(width, mlp_ratio)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tokens, conditioning: TextConditioning, attend: Attend, block: int) -> Tokens:
        """Self-attention, through `attend`; then the text; then the MLP."""
        modulation = self.modulation(conditioning.modulation).chunk(6, dim=-1)
        attended = attend(block, *self.enter(x, *modulation[:2]))
        text = self.cross_attn.keys(conditioning.text, conditioning.mask)
        return self.leave(x, attended, *modulation[2:], text=text)

    def modulation(self, shared: Modulation) -> Modulation:
        """The block's own: what all blocks share, and its table."""
        return shared + self.scale_shift_table.flatten()

    def enter(self, x: Tokens, shift: Vector, scale: Vector) -> tuple[Heads, Heads, Heads]:
        """Up to the self-attention: its queries, keys and values."""
        return self.attn.heads(modulate(x, shift, scale))

    def leave(
        self,
        x: Tokens,
        attended: Heads,
        gate_a: Vector,
        shift: Vector,
        scale: Vector,
        gate_m: Vector,
        *,
        text: TextKeys,
    ) -> Tokens:
        """From the self-attention on: its output and the MLP's are added through their gates, the text's as it is."""
        x = torch.addcmul(x, gate_a.unsqueeze(1), self.attn.join(attended))
        x = x + self.cross_attn(x, text)
        return torch.addcmul(x, gate_m.unsqueeze(1), self.mlp(modulate(x, shift, scale)))


class TextFinalLayer(nn.Module):
    """Tokens to the values of their patches, modulated by the time and a table."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_features)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tokens, vector: Vector) -> Patches:
        """Modulate and project."""
        shift, scale = self.modulation(vector).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))

    def modulation(self, vector: Vector) -> Modulation:
        """Shift and scale, from the time alone."""
        return torch.cat([vector, vector], dim=-1) + self.scale_shift_table.flatten()


class TextEmbedder(nn.Module):
    """Prompts as the text encoder gives them, and a time's vector, to what the blocks read."""

    def __init__(self, text_width: int, width: int, *, picture_size: int | None) -> None:
        """`picture_size` is the picture's side in pixels for a network that is told it."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(text_width, width), nn.Linear(width, width)
        self.adaLN_single = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.size = SizeEmbedder(width, picture_size) if picture_size is not None else None
        self.computing = Computing()

    def forward(self, time: Vector, prompts: Prompts) -> TextConditioning:
        """What the blocks read."""
        vector, modulation = self.times(time)
        return TextConditioning(vector, modulation, self.text(prompts.tokens), prompts.mask)

    def times(self, time: Vector) -> tuple[Vector, Modulation]:
        """The vector of the time, and of the picture's size where it is told, and the modulation that blocks share."""
        vector = time if self.size is None else time + self.size()
        return vector, self.adaLN_single(vector)

    def text(self, tokens: TextTokens) -> Text:
        """The text in the network's own width and precision."""
        return self.fc2(gelu(self.fc1(tokens.to(self.computing.dtype)), approximate="tanh"))


class SizeEmbedder(nn.Module):
    """The height, the width and the aspect ratio of a square picture, as PixArt-alpha at 1024 pixels is told them."""

    def __init__(self, width: int, picture_size: int) -> None:
        super().__init__()
        self.picture_size = picture_size
        self.resolution, self.aspect_ratio = TimestepEmbedder(width // 3), TimestepEmbedder(width // 3)

    def forward(self) -> Float[Tensor, "1 embedding"]:
        """One vector, for all rows. The angles have the precision of float32 at least, whatever the weights have."""
        computing = self.resolution.computing
        dtype = torch.promote_types(computing.dtype, torch.float32)
        side = torch.full((1,), self.picture_size, dtype=dtype, device=computing.device)
        height_and_width = self.resolution(side).repeat(1, 2)
        return torch.cat([height_and_width, self.aspect_ratio(torch.ones_like(side))], dim=1)
