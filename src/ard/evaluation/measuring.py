"""What a teacher's images are compared with and measured on: real images, if there are any, and a space of features."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ard.core.config import fingerprint_of, to_plain
from ard.core.errors import InputError
from ard.core.model_folder import save_model
from ard.core.processes import working_in
from ard.core.random import batch_ids
from ard.core.types import Labels
from ard.evaluation.classifier import (
    TrainedClassifier,
    classifier_loss,
    held_out_accuracy,
    load_classifier,
    new_classifier,
)
from ard.evaluation.evaluate import Conditions
from ard.evaluation.feature_pass import evenly_spread
from ard.evaluation.feature_space import FeatureKind, FeatureSpace, StateFeatures, TeacherFeatures
from ard.images import ImageData, load_data
from ard.networks.condition import Condition, Prompts, padded
from ard.networks.transformer import TransformerConfig
from ard.teacher.teacher import Teacher
from ard.training.loop import TrainConfig, train
from ard.training.real_set import open_real_set
from ard.trajectories.manifest import Manifest

MOST_REAL = 10_000  # Real images of a path that are compared with.


Rows = Int[Tensor, " row"]


class RealData(NamedTuple):
    """Real images in the teacher's kind of state, and what they are called."""

    name: str
    data: ImageData


def real_data(teacher: Teacher, manifest: Manifest, path: Path | None) -> RealData | None:
    """The images at `path`, or the teacher's data set; None for an imported teacher without a path.

    At most `MOST_REAL` of the images at a path. InputError when they do not fit the trajectories.
    """
    if path is None:
        return RealData(teacher.data, load_data(teacher.data)) if teacher.data is not None else None
    real = open_real_set(path, manifest)
    rows = some_of(real.labels, MOST_REAL)
    images = real.draw(rows, torch.Generator().manual_seed(0)).float()
    name = f"{fingerprint_of(real.identity)} ({len(real.labels)} images)"
    return RealData(name, ImageData(images, real.labels[rows], manifest.num_classes))


def some_of(labels: Labels, num: int) -> Rows:
    """At most `num` rows, in order, in which every label has its share: evenly spread over the rows sorted by label.

    Distances see the shares of classes: an even spread over a store whose labels go round would take one class only.
    """
    order = labels.argsort(stable=True)
    return order[torch.tensor(evenly_spread(len(order), num))].sort().values


def make_space(
    kind: FeatureKind | None,
    teacher: Teacher,
    real: RealData | None,
    conditions: Conditions,
    *,
    classifier: Path,
    pictures: bool,
) -> FeatureSpace:
    """What images are measured on; InputError for a classifier where there is nothing to train it on.

    Without a kind it is the classifier for a teacher whose data set is known, else the teacher's own features. A
    classifier is kept in the folder `classifier`. `pictures` says whether the states are pictures, no latents.
    """
    shape = teacher.network.config
    match kind or (FeatureKind.TEACHER if teacher.data is None else FeatureKind.CLASSIFIER):
        case FeatureKind.TEACHER:
            return TeacherFeatures(teacher, unconditional(shape, conditions))
        case FeatureKind.PIXELS:
            return StateFeatures(shape.channels, shape.latent_size)
        case FeatureKind.CLASSIFIER:
            if real is None:
                raise InputError(
                    "--features classifier needs images with classes to train it on: name them with --real, or take "
                    "--features teacher"
                )
            if real.data.num_classes < 2:
                raise InputError("--features classifier needs several classes; take --features teacher")
            return make_classifier(classifier, real, pictures=pictures)


def unconditional(shape: TransformerConfig, conditions: Conditions) -> Condition:
    """What asks one image for nothing: no class, the empty prompt, or the first class where there is no other way."""
    if shape.text is None:
        return torch.tensor([shape.num_classes if shape.null_class else 0])
    first = conditions(torch.tensor([0]))
    assert isinstance(first, Prompts)  # noqa: S101 a text's conditions are prompts
    return padded([first.null], null=first.null, length=len(first.null))


def make_classifier(folder: Path, real: RealData, *, pictures: bool = True) -> TrainedClassifier:
    """Train the classifier that the features come from, unless `folder` has it, or another command makes it."""
    with working_in(folder, wait=True):
        if not (folder / "config.json").exists():
            _train_classifier(folder, real, pictures=pictures)
    return load_classifier(folder, real.name, real.data, pictures=pictures)


def _train_classifier(folder: Path, real: RealData, *, pictures: bool) -> None:
    data = real.data
    network = new_classifier(data, pictures=pictures)
    config = TrainConfig(iterations=400, batch_size=64, learning_rate=2e-3, checkpoint_every=400)
    loss = classifier_loss(
        network, data, lambda rows, step: batch_ids(rows, seed=0, step=step, batch=config.batch_size)
    )
    run = {"data": real.name, "train": to_plain(config)}
    network.load_state_dict(train(network, loss, config, folder, run=run, description="classifier").averaged())
    accuracy = held_out_accuracy(network.eval(), data)
    save_model(folder, "classifier", {"data": real.name, "test_accuracy": accuracy}, network.state_dict())
