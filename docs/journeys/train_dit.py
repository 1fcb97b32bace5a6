"""A DiT of class-conditional digits in plain PyTorch, under DiT's own names: a teacher that `ard` has not trained.

    python docs/journeys/train_dit.py --out outside

writes outside/digits.pt, with the averaged weights under `ema`, and outside/digits, the pictures in a folder per class.
"""

import argparse
import copy
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES, NUM_TIMES, FREQUENCIES, PATCH, SIDE = 10, 1000, 256, 2, 8
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, NUM_TIMES, dtype=torch.float64), dim=0).float()


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed positions (1, token, width), as MAE's: half for the column, half for the row, sines before cosines."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([one.repeat(grid, 1), one.repeat_interleave(grid, dim=0)], dim=1).float()[None]


class Patches(nn.Module):
    """A picture (row, 1, side, side) to tokens (row, token, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Times(nn.Module):
    """Sinusoids of the time, 0 … 999, through an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angles = t.float()[:, None] * 10000.0 ** -(torch.arange(half) / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class Classes(nn.Module):
    """A vector per class; the last row is for no class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(NUM_CLASSES + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class Attention(nn.Module):
    """Every token reads all others."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """A layer of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width, num_heads), Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulated(x, shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulated(x, shift_m, scale_m))


class Output(nn.Module):
    """Tokens to the values of their patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, PATCH**2)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(modulated(x, *self.adaLN_modulation(condition).chunk(2, dim=1)))


class DiT(nn.Module):
    """The noise that is in a digit, from the digit with noise, the time and the class."""

    def __init__(self, *, width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.x_embedder, self.t_embedder, self.y_embedder = Patches(width), Times(width), Classes(width)
        self.register_buffer("pos_embed", sincos_positions(width, SIDE // PATCH))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.final_layer = Output(width)
        for module in [*self.blocks, self.final_layer]:  # Every block begins as the identity, the output as zero.
            nn.init.zeros_(module.adaLN_modulation[1].weight)
            nn.init.zeros_(module.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        condition = self.t_embedder(t) + self.y_embedder(label)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        values = self.final_layer(tokens, condition).unflatten(1, (SIDE // PATCH, SIDE // PATCH))
        return values.unflatten(3, (PATCH, PATCH)).transpose(2, 3).flatten(3).flatten(1, 2)[:, None]


def digits() -> tuple[Tensor, Tensor]:
    """(pictures of shape 1797 1 8 8 in [-1, 1], labels)."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, SIDE, SIDE) / 8 - 1, torch.from_numpy(labels).long()


def save_pictures(folder: Path, pictures: Tensor, labels: Tensor) -> None:
    """A PNG per picture in the folder of its class."""
    for index, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = ((picture.squeeze() + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / str(label) / f"{index:04}.png")


def train(network: DiT, pictures: Tensor, labels: Tensor, *, iterations: int, batch_size: int = 64) -> DiT:
    """Train to predict the noise; the average of the weights over time."""
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0)
    for step in range(iterations):
        chosen = torch.randint(len(pictures), (batch_size,))
        x_0, t, noise = (
            pictures[chosen],
            torch.randint(NUM_TIMES, (batch_size,)),
            torch.randn(batch_size, 1, SIDE, SIDE),
        )
        label = labels[chosen].where(torch.rand(batch_size) > 0.1, NUM_CLASSES)  # No class at times, for guidance.
        alpha_bar = ALPHA_BAR[t].view(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
        loss = (network(x_t, t, label) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50, 1.05 - step / iterations)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 10))
        for kept, now in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(now.detach(), 1 - decay)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("iterations", 3000), ("width", 48), ("depth", 4), ("num-heads", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures, labels = digits()
    save_pictures(options.out / "digits", pictures, labels)
    network = DiT(width=options.width, depth=options.depth, num_heads=options.num_heads)
    average = train(network, pictures, labels, iterations=options.iterations)
    torch.save({"ema": average.state_dict(), "model": network.state_dict()}, options.out / "digits.pt")


if __name__ == "__main__":
    main()
