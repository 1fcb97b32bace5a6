"""The Inception Score against closed forms and torch-fidelity; its splits are in the order of the file."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.metrics.inception_score import inception_score

Normal = Callable[..., Tensor]


@pytest.mark.parametrize(("samples", "split_size"), [(400, 40), (400, 400), (300, 100)])
def test_the_score_equals_torch_fidelitys_without_its_shuffle(
    normal: Normal, torch_fidelity: ModuleType, samples: int, split_size: int
) -> None:
    logits = 3 * normal(samples, 20)
    isc = torch_fidelity.metric_isc
    wanted = isc.isc_features_to_metric(logits, splits=samples // split_size, shuffle=False)
    score = inception_score(logits.softmax(dim=1), split_size=split_size)
    assert score.mean == pytest.approx(wanted["inception_score_mean"], rel=1e-10)
    assert score.std == pytest.approx(wanted["inception_score_std"], rel=1e-10, abs=1e-12)


def test_a_sure_classifier_that_sees_all_classes_alike_scores_their_number() -> None:
    assert inception_score(torch.eye(7).repeat(6, 1)) == pytest.approx((7, 0), rel=1e-12)


def test_a_classifier_that_sees_the_same_in_every_image_scores_one() -> None:
    one_class = torch.eye(7)[:1].repeat(20, 1)
    assert inception_score(one_class) == pytest.approx((1, 0), rel=1e-12)
    assert inception_score(torch.full((20, 7), 1 / 7)) == pytest.approx((1, 0), rel=1e-6)


def test_two_classes_that_are_mixed_have_the_score_of_their_entropies() -> None:
    p = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()
    marginal = p.mean(dim=0)
    wanted = ((p * (p / marginal).log()).sum() / 2).exp()
    assert inception_score(p).mean == pytest.approx(float(wanted), rel=1e-12)


def test_splits_are_of_five_thousand_images_in_the_order_of_the_file(normal: Normal) -> None:
    probabilities = (4 * normal(10_000, 4)).softmax(dim=1)
    probabilities[5_000:, 0] = 0.0  # The second half never sees class 0.
    score = inception_score(probabilities / probabilities.sum(dim=1, keepdim=True))
    halves = [
        inception_score(half / half.sum(dim=1, keepdim=True)).mean
        for half in (probabilities[:5_000], probabilities[5_000:])
    ]
    assert score.mean == pytest.approx(sum(halves) / 2, rel=1e-12)
    assert score.std == pytest.approx(abs(halves[0] - halves[1]) / 2, rel=1e-9)
    assert halves[0] > halves[1] + 0.1


def test_an_order_across_splits_matters_and_one_inside_a_split_does_not() -> None:
    by_class = torch.eye(4).repeat_interleave(2_500, dim=0)  # Two classes in each split of 5,000.
    assert inception_score(by_class) == pytest.approx((2, 0), rel=1e-12)
    inside = torch.cat([by_class[:5_000].flip(0), by_class[5_000:].roll(1_000, dims=0)])
    assert inception_score(inside) == pytest.approx((2, 0), rel=1e-12)
    across = by_class[torch.arange(10_000).view(4, 2_500).T.flatten()]
    assert inception_score(across) == pytest.approx((4, 0), rel=1e-12)


def test_a_last_split_may_be_smaller() -> None:
    rows = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    assert inception_score(rows, split_size=3) == pytest.approx((7 / 3, 8**0.5 / 3), rel=1e-12)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(InputError, match="number of samples is 0; at least 1"):
        inception_score(torch.zeros(0, 5))
    with pytest.raises(InputError, match="split_size is 0; at least 1"):
        inception_score(torch.eye(5), split_size=0)
