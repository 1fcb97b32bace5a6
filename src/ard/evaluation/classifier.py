"""The small classifier whose features stand in for Inception's on the embedded data: trained once and kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ard.core.errors import InputError
from ard.core.model_folder import load_config, load_model
from ard.core.types import Features, Latents
from ard.images import ImageData

FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and two linear layers; the 64 values before the last layer are the features."""

    def __init__(self, channels: int, size: int, num_classes: int, *, pictures: bool = True) -> None:
        super().__init__()
        self.bound = 1.0 if pictures else float("inf")
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (-(-size // 2)) ** 2, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: Latents) -> tuple[Features, Tensor]:
        """(features, logits) of pictures in [-1, 1], whose values outside are cut off, or of latents."""
        features = self.body(images.clamp(-self.bound, self.bound))
        return features, self.head(features)


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier and the share of held-out images that it gets right."""

    network: Classifier
    data: str
    test_accuracy: float

    @property
    def name(self) -> str:
        """What tables call its features."""
        return "classifier features"

    @torch.no_grad()
    def features(self, images: Latents) -> tuple[Features, Tensor | None]:
        """(features, predicted labels) on the CPU, whatever the number of images."""
        parts = [self.network(part) for part in images.float().split(512)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1].argmax(dim=1) for part in parts])


def split(data: ImageData) -> tuple[Tensor, Tensor]:
    """(training rows, held-out rows): a fifth is held out."""
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    held_out = len(order) // 5
    return order[held_out:], order[:held_out]


def classifier_loss(
    network: Classifier, data: ImageData, draw: Callable[[int, int], Tensor]
) -> Callable[[int], Tensor]:
    """Cross-entropy on the training rows; `draw(number of rows, update)` picks them."""
    rows, _ = split(data)

    def loss_at(step: int) -> Tensor:
        ids = rows[draw(len(rows), step)]
        return cross_entropy(network(data.images[ids])[1], data.labels[ids])

    return loss_at


@torch.no_grad()
def held_out_accuracy(network: Classifier, data: ImageData) -> float:
    """The share of held-out images that are classified right."""
    _, rows = split(data)
    return float((network(data.images[rows])[1].argmax(dim=1) == data.labels[rows]).float().mean())


def new_classifier(data: ImageData, *, pictures: bool = True) -> Classifier:
    """An untrained classifier for `data`, pictures or latents; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # The CPU's only: a GPU's stays as it is.
        return Classifier(data.images.shape[1], data.images.shape[2], data.num_classes, pictures=pictures)


def load_classifier(folder: Path, name: str, data: ImageData, *, pictures: bool = True) -> TrainedClassifier:
    """The classifier in `folder`; InputError when it was trained on other data than `data`, which is called `name`."""
    config = load_config(folder, "classifier")
    if config.get("data") != name or not isinstance(config.get("test_accuracy"), float):
        raise InputError(f"{folder} was trained on {config.get('data')}, not on {name}; delete it")
    network = new_classifier(data, pictures=pictures).eval()
    load_model(network, folder)
    return TrainedClassifier(network, name, config["test_accuracy"])
