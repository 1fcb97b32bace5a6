"""scikit-learn's digits: 1,797 real 8x8 images of handwritten digits, inside the package, no download."""

import torch

from ard.core.extras import importing
from ard.core.types import Labels, Latents


def load_digits_images() -> tuple[Latents, Labels, int]:
    """(images of shape 1797 1 8 8 in [-1, 1], labels, 10)."""
    with importing("scikit-learn", "demo"):
        from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1  # 0 … 16 to -1 … 1
    return images, torch.from_numpy(labels).long(), 10
