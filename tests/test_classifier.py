"""The classifier behind the features: its split, its loss, its features and its folder."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ard.core.errors import InputError
from ard.core.model_folder import save_model
from ard.evaluation.classifier import (
    FEATURES,
    TrainedClassifier,
    classifier_loss,
    held_out_accuracy,
    load_classifier,
    new_classifier,
    split,
)
from ard.images import ImageData, load_data


def some_data(rows: int = 43) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    return ImageData(torch.randn(rows, 1, 8, 8, generator=generator), torch.arange(rows) % 3, 3)


def trained(data: ImageData) -> TrainedClassifier:
    return TrainedClassifier(new_classifier(data).eval(), "none", 0.5)


def test_a_fifth_of_the_images_is_held_out_and_none_is_lost() -> None:
    kept, held_out = split(some_data(43))
    assert (len(kept), len(held_out)) == (35, 8)
    assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(43))


def test_the_split_is_the_same_every_time_and_mixed() -> None:
    (kept, _), (again, _) = split(some_data()), split(some_data())
    assert torch.equal(kept, again)
    assert kept.tolist() != sorted(kept.tolist())


def test_a_new_classifier_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = new_classifier(some_data()).state_dict(), new_classifier(some_data()).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_features_do_not_depend_on_the_number_of_images() -> None:
    data = some_data(700)  # More than one pass of the network.
    features, labels = trained(data).features(data.images)
    assert features.shape == (700, FEATURES)
    assert not features.requires_grad
    alone = [trained(data).features(data.images[[row]]) for row in (0, 511, 512, 699)]
    torch.testing.assert_close(torch.cat([part[0] for part in alone]), features[[0, 511, 512, 699]])
    assert torch.cat([part[1] for part in alone]).equal(labels[[0, 511, 512, 699]])


def test_features_are_those_of_the_picture() -> None:
    """What a picture cannot show, values beyond [-1, 1], has no influence."""
    data = some_data()
    assert data.images.abs().max() > 2
    features, _ = trained(data).features(data.images)
    assert torch.equal(features, trained(data).features(data.images.clamp(-1, 1))[0])
    assert not torch.equal(features, trained(data).features(data.images.clamp(-0.9, 0.9))[0])


def test_the_predicted_label_is_the_last_layers_choice_on_the_features() -> None:
    data = some_data()
    classifier = trained(data)
    features, labels = classifier.features(data.images)
    assert labels.equal(classifier.network.head(features).argmax(dim=1))
    assert (features >= 0).all()


def test_the_loss_is_cross_entropy_on_training_rows_only() -> None:
    data, drawn = some_data(), []

    def draw(rows: int, step: int) -> Tensor:
        drawn.append((rows, step))
        return torch.tensor([34, 0])

    network = new_classifier(data)
    loss = classifier_loss(network, data, draw)(7)
    rows = split(data)[0][[34, 0]]
    assert drawn == [(35, 7)]
    torch.testing.assert_close(loss, cross_entropy(network(data.images[rows])[1], data.labels[rows]))


class Oracle(torch.nn.Module):
    """Reads the label off the first pixel, and is always wrong about label 2."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        label = images[:, 0, 0, 0].long()
        label = torch.where(label == 2, 0, label)
        return images.flatten(1), torch.nn.functional.one_hot(label, 3)


def test_the_accuracy_is_the_share_of_held_out_images_classified_right(monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_data()
    labels = torch.full((43,), 2)  # Wrong everywhere but on some held-out images.
    labels[split(data)[1][:6]] = torch.tensor([0, 1, 0, 1, 0, 1])
    images = torch.zeros(43, 1, 8, 8)
    images[:, 0, 0, 0] = labels
    network = new_classifier(data)
    monkeypatch.setattr(network, "forward", Oracle().forward)
    assert held_out_accuracy(network, ImageData(images, labels, 3)) == 6 / 8


@pytest.mark.parametrize("size", [4, 7, 8])
def test_images_may_have_any_size(size: int) -> None:
    images = torch.zeros(2, 3, size, size)
    features, logits = new_classifier(ImageData(images, torch.zeros(2, dtype=torch.long), 5))(images)
    assert features.shape == (2, FEATURES)
    assert logits.shape == (2, 5)


def test_a_classifier_comes_back_from_its_folder(tmp_path: Path) -> None:
    data = load_data("digits")
    network = new_classifier(data)
    with torch.no_grad():
        network.head.bias += 1
    save_model(tmp_path, "classifier", {"data": "digits", "test_accuracy": 0.75}, network.state_dict())
    loaded = load_classifier(tmp_path, "digits", data)
    assert (loaded.data, loaded.test_accuracy) == ("digits", 0.75)
    assert torch.equal(loaded.network(data.images[:5])[1], network(data.images[:5])[1])


def test_a_classifier_of_other_data_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "classifier", {"data": "digits", "test_accuracy": 0.75}, {})
    with pytest.raises(InputError, match=r"digits, not (on|of) faces"):
        load_classifier(tmp_path, "faces", some_data())
