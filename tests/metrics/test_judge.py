"""What the rows of a table take from the metrics: which sets are compared, and how many rows of them."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ard.evaluation.classifier import TrainedClassifier, new_classifier
from ard.evaluation.evaluate import Judge, make_judge
from ard.evaluation.metrics.frechet import frechet_distance
from ard.evaluation.metrics.moments import moments_of
from ard.evaluation.metrics.precision_recall import precision_recall
from ard.images import ImageData
from ard.trajectories.reader import TrajectoryBatch


class Sets(NamedTuple):
    judge: Judge
    real: Tensor
    paired: Tensor
    reference: Tensor


def images(rows: int, seed: int) -> Tensor:
    return torch.randn((rows, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def judge_of(real_rows: int, rows: int) -> Sets:
    real, paired, reference = images(real_rows, 0), images(rows, 1), images(rows, 2)
    network = new_classifier(ImageData(real, torch.arange(real_rows) % 3, 3)).eval()
    classifier = TrainedClassifier(network, "none", 0.5)
    evaluation = TrajectoryBatch(torch.stack([images(rows, 3), paired], dim=1), torch.arange(rows) % 3)
    judge = make_judge(classifier, real, evaluation, reference)
    return Sets(judge, *(classifier.features(part)[0] for part in (real, paired, reference)))


@pytest.mark.parametrize(("real_rows", "rows"), [(60, 40), (40, 60)])
def test_precision_and_recall_compare_the_first_rows_of_sets_of_one_size(real_rows: int, rows: int) -> None:
    judge, real, paired, _ = judge_of(real_rows, rows)
    scores = judge.scores(judge.paired)
    wanted = precision_recall(real[:40], paired[:40])
    assert (scores.precision, scores.recall) == wanted
    assert wanted != precision_recall(real, paired)


def test_distances_compare_whole_sets() -> None:
    judge, real, paired, reference = judge_of(60, 40)
    scores = judge.scores(judge.paired)
    moments = moments_of(paired)
    assert scores.fd_real == frechet_distance(moments, moments_of(real))
    assert scores.fd_teacher == scores.fd_floor == frechet_distance(moments, moments_of(reference))
    assert 0 < scores.fd_teacher != scores.fd_real


def test_the_floor_of_the_distance_to_real_images_is_that_of_their_halves() -> None:
    judge, real, _, _ = judge_of(400, 40)
    halves = [
        frechet_distance(moments_of(real[order[:200]]), moments_of(real[order[200:]]))
        for order in (torch.randperm(400, generator=torch.Generator().manual_seed(seed)) for seed in range(100, 120))
    ]
    assert min(halves) < judge.real_floor < max(halves)
    assert judge.real_floor < judge_of(100, 40).judge.real_floor, "fewer images, more noise"


def test_a_judge_with_other_real_images_is_another_one() -> None:
    judge, other = judge_of(60, 40)[0], judge_of(80, 40)[0]
    assert judge.floor == other.floor
    assert judge.identity != other.identity
