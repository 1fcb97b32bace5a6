"""What is measured on which features, with cheap networks in place of the published ones."""

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ard.core.errors import InputError
from ard.evaluation.adm import Reference, folder_reference, open_array_file, read_reference
from ard.evaluation.feature_pass import collect, evenly_spread
from ard.evaluation.features.network import Feature, FeatureNetwork
from ard.evaluation.images import Images
from ard.evaluation.metrics.clip_mmd import cmmd
from ard.evaluation.metrics.frechet import frechet_distance
from ard.evaluation.metrics.inception_score import inception_score
from ard.evaluation.metrics.kernel_distance import kernel_distance
from ard.evaluation.metrics.moments import moments_of
from ard.evaluation.metrics.precision_recall import Distances, precision_recall
from ard.evaluation.protocol import Metric, Settings, Weights, load_networks, make_reference, measure
from ard.evaluation.real import open_real

ArrayFile = Callable[..., Images]


class Cheap:
    """A network of random projections that counts the pictures it has seen."""

    def __init__(self, name: str, *features: Feature) -> None:
        self.seen = 0
        self.features = features
        self.network = FeatureNetwork(
            name=name, features=features, extract=self.extract, facts={"weights": name}, notes=(f"{name} is cheap",)
        )

    def extract(self, pixels: Tensor) -> dict[Feature, Tensor]:
        self.seen += len(pixels)
        return {feature: project(pixels, feature) for feature in self.features}


def project(pixels: Tensor, feature: Feature) -> Tensor:
    """Five values of a picture, other ones for each feature, and all in (0, 1) for the probabilities."""
    seed = list(Feature).index(feature)
    matrix = torch.randn(16 * 16 * 3, 5, generator=torch.Generator().manual_seed(seed))
    values = pixels.float().flatten(1) @ matrix / 1000
    return values.softmax(dim=1) if feature is Feature.PROBABILITIES else values


@pytest.fixture
def inception() -> Cheap:
    return Cheap("inception", Feature.POOL3, Feature.SPATIAL, Feature.PROBABILITIES)


@pytest.fixture
def dinov2() -> Cheap:
    return Cheap("dinov2", Feature.DINOV2)


@pytest.fixture
def clip() -> Cheap:
    return Cheap("clip", Feature.CLIP)


@pytest.fixture
def array_file(tmp_path: Path, pictures: Callable[..., NDArray[Any]]) -> ArrayFile:
    """array_file(count, seed): pictures in an .npz, opened."""

    def write(count: int, seed: int = 0, size: int = 16) -> Images:
        path = tmp_path / f"{count}-{seed}-{size}.npz"
        np.savez(path, arr_0=pictures(count, seed=seed, size=size))
        return open_array_file(path)

    return write


def all_of(images: Images, feature: Feature) -> Tensor:
    """A feature of every picture, in one batch."""
    return project(torch.cat(list(images.batches(range(images.count), images.count))), feature)


def measured(
    samples: Images, reference: Reference | None, metrics: Sequence[Metric], *networks: Cheap, **settings: Any
) -> dict[str, float]:
    found = [network.network for network in networks]
    return measure(samples, reference, metrics, found, settings=Settings(**settings), batch_size=7).metrics


def rows_of(
    images: Images,
    *networks: Cheap,
    num_rows: int,
    moments: AbstractSet[Feature] = frozenset(),
    batch_size: int = 4,
) -> Tensor:
    """CLIP's rows as this rank collects them."""
    found = collect(
        images,
        [network.network for network in networks],
        moments=moments,
        rows={Feature.CLIP},
        num_rows=num_rows,
        batch_size=batch_size,
        description="images",
    )
    return found.rows[Feature.CLIP]


class TestMetrics:
    """The numbers are those of the metrics' own functions on all features."""

    def test_every_metric_is_measured_on_its_features(
        self, array_file: ArrayFile, inception: Cheap, dinov2: Cheap, clip: Cheap
    ) -> None:
        samples, real = array_file(40), array_file(30, seed=1)
        found = measured(samples, folder_reference(real), tuple(Metric), inception, dinov2, clip, split_size=15)
        x, y = ({feature: all_of(images, feature) for feature in Feature} for images in (samples, real))
        distances = {
            name: frechet_distance(moments_of(x[feature]), moments_of(y[feature]))
            for name, feature in (("fid", "pool3"), ("sfid", "spatial"), ("fd_dinov2", "dinov2"))
        }
        score = inception_score(x[Feature.PROBABILITIES], split_size=15)
        both = precision_recall(y[Feature.POOL3], x[Feature.POOL3])
        kernel = kernel_distance(x[Feature.POOL3], y[Feature.POOL3], subset_size=30)
        wanted = {
            **distances,
            "inception_score": score.mean,
            "inception_score_std": score.std,
            "precision": both.precision,
            "recall": both.recall,
            "kid": kernel.mean,
            "kid_std": kernel.std,
            "cmmd": cmmd(x[Feature.CLIP], y[Feature.CLIP]),
        }
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert math.isclose(found[name], value, rel_tol=1e-6, abs_tol=1e-9), name
        assert len({round(value, 6) for value in distances.values()}) == 3

    def test_precision_is_of_the_samples_and_recall_of_the_reference(
        self, tmp_path: Path, inception: Cheap, pictures: Callable[..., NDArray[Any]]
    ) -> None:
        noise = np.random.default_rng(0).integers(0, 2, (40, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / "collapsed.npz", arr_0=pictures(1) // 2 + 60 + noise)  # One picture, forty times.
        np.savez(tmp_path / "real.npz", arr_0=np.concatenate([pictures(1) // 2 + 60, pictures(39, seed=1)]))
        collapsed, real = (open_array_file(tmp_path / f"{name}.npz") for name in ("collapsed", "real"))
        found = measured(collapsed, folder_reference(real), [Metric.PRECISION_RECALL], inception)
        assert found["precision"] == 1
        assert found["recall"] < 0.1

    @pytest.mark.parametrize("distances", Distances)
    def test_the_distances_of_precision_and_recall_may_be_chosen(
        self, array_file: ArrayFile, inception: Cheap, distances: Distances
    ) -> None:
        samples, real = array_file(30), array_file(30, seed=1)
        found = measured(samples, folder_reference(real), [Metric.PRECISION_RECALL], inception, pr_distances=distances)
        features = (all_of(images, Feature.POOL3) for images in (real, samples))
        assert (found["precision"], found["recall"]) == precision_recall(*features, distances=distances)

    def test_the_inception_score_needs_no_reference(self, array_file: ArrayFile, inception: Cheap) -> None:
        assert measured(array_file(9), None, [Metric.INCEPTION_SCORE], inception)["inception_score"] > 1

    def test_the_names_of_other_features_do_not_say_fid(self, array_file: ArrayFile, dinov2: Cheap) -> None:
        found = measured(array_file(9), folder_reference(array_file(9, seed=1)), [Metric.FD_DINOV2], dinov2)
        assert list(found) == ["fd_dinov2"]

    @pytest.mark.parametrize("batch_size", [1, 4, 1000])
    def test_the_numbers_do_not_depend_on_the_batch(
        self, array_file: ArrayFile, inception: Cheap, batch_size: int
    ) -> None:
        samples, reference = array_file(20), folder_reference(array_file(20, seed=1))
        metrics = [Metric.FID, Metric.PRECISION_RECALL, Metric.KID]
        wanted = measured(samples, reference, metrics, inception)
        found = measure(
            samples, reference, metrics, [inception.network], settings=Settings(), batch_size=batch_size
        ).metrics
        # Products round by where rows lie in memory; the spread of one subset that is all pictures is rounding alone.
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-9)


class TestReference:
    """What is stored is used, and the rest is computed."""

    def test_a_file_made_from_a_folder_gives_the_folders_numbers(
        self, tmp_path: Path, array_file: ArrayFile, dinov2: Cheap, clip: Cheap
    ) -> None:
        samples, real = array_file(20), array_file(30, seed=1)
        make_reference(tmp_path / "ref.npz", real, [dinov2.network], num_kept=12, batch_size=7)
        metrics = [Metric.FD_DINOV2, Metric.CMMD]
        from_file, from_folder = (
            measured(samples, reference, metrics, dinov2, clip, num_kept=12)
            for reference in (read_reference(tmp_path / "ref.npz"), folder_reference(real))
        )
        assert from_file == pytest.approx(from_folder, rel=1e-6)

    def test_a_reference_keeps_pictures_from_everywhere_and_the_statistics_of_all(
        self, tmp_path: Path, array_file: ArrayFile, dinov2: Cheap
    ) -> None:
        real = array_file(30)
        make_reference(tmp_path / "ref.npz", real, [dinov2.network], num_kept=12, batch_size=7)
        reference = read_reference(tmp_path / "ref.npz")
        assert reference.images is not None
        spread = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
        torch.testing.assert_close(all_of(reference.images, Feature.CLIP), all_of(real, Feature.CLIP)[spread])
        wanted = moments_of(all_of(real, Feature.DINOV2))
        torch.testing.assert_close(reference.stored[Feature.DINOV2].covariance, wanted.covariance, rtol=1e-5, atol=1e-5)
        assert reference.facts["made_by"]["images"]["num"] == 30

    def test_stored_statistics_are_used_and_the_pictures_left_alone(self, array_file: ArrayFile, dinov2: Cheap) -> None:
        samples, real = array_file(20), array_file(9, seed=1)
        stored = moments_of(all_of(array_file(25, seed=2), Feature.DINOV2))
        reference = Reference(images=real, stored={Feature.DINOV2: stored}, facts={"path": "ref.npz"})
        found = measured(samples, reference, [Metric.FD_DINOV2], dinov2)
        wanted = frechet_distance(moments_of(all_of(samples, Feature.DINOV2)), stored)
        assert found["fd_dinov2"] == pytest.approx(wanted, rel=1e-6)
        assert dinov2.seen == samples.count

    def test_rows_of_the_kept_pictures_only_are_compared(self, array_file: ArrayFile, clip: Cheap) -> None:
        samples, real = array_file(20), array_file(30, seed=1)
        found = measured(samples, folder_reference(real), [Metric.CMMD], clip, num_kept=10)
        wanted = cmmd(all_of(samples, Feature.CLIP), all_of(real, Feature.CLIP)[::3])
        assert found["cmmd"] == pytest.approx(wanted, rel=1e-6)
        assert clip.seen == 20 + 10

    def test_a_folder_sorted_by_class_keeps_every_class_in_proportion(
        self, tmp_path: Path, pictures: Callable[..., NDArray[Any]], write_pngs: Callable[..., Path], clip: Cheap
    ) -> None:
        for shade, num in ((10, 4), (20, 12), (30, 8)):  # A class is a shade of grey, in a folder of its own.
            write_pngs(tmp_path / "train" / f"class {shade}", np.full_like(pictures(num), shade))
        real = open_real(tmp_path / "train", size=None)
        make_reference(tmp_path / "ref.npz", real, [], num_kept=6, batch_size=5)
        with np.load(tmp_path / "ref.npz") as arrays:
            assert arrays["arr_0"][:, 0, 0, 0].tolist() == [10, 20, 20, 20, 30, 30]
        kept = open_array_file(tmp_path / "ref.npz")
        torch.testing.assert_close(rows_of(real, clip, num_rows=6), all_of(kept, Feature.CLIP))

    def test_kids_subsets_are_no_larger_than_the_smaller_set_and_the_result_says_so(
        self, array_file: ArrayFile, inception: Cheap
    ) -> None:
        reference = folder_reference(array_file(12, seed=1))
        result = measure(
            array_file(20), reference, [Metric.KID], [inception.network], settings=Settings(), batch_size=7
        )
        assert result.settings["kid_subset_size"] == 12

    @pytest.mark.parametrize(
        ("metrics", "words"),
        [
            ([Metric.INCEPTION_SCORE, Metric.FID], "fid compares with a reference: give --ref"),
            ([Metric.PRECISION_RECALL], "pr compares with a reference"),
        ],
    )
    def test_without_a_reference_only_the_inception_score_is_measured(
        self, array_file: ArrayFile, inception: Cheap, metrics: list[Metric], words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            measured(array_file(9), None, metrics, inception)
        assert inception.seen == 0

    @pytest.mark.parametrize(
        ("metric", "words"),
        [
            (Metric.PRECISION_RECALL, "pr needs arr_0, which stats.npz does not have"),
            (Metric.KID, "kid needs arr_0, which stats.npz"),
            (Metric.SFID, "sfid needs arr_0 or mu_s, which stats.npz"),
            (Metric.FD_DINOV2, "fd-dinov2 needs arr_0 or mu_dinov2, which stats.npz"),
        ],
    )
    def test_statistics_alone_serve_their_own_distance_only(
        self, array_file: ArrayFile, inception: Cheap, metric: Metric, words: str
    ) -> None:
        samples = array_file(9)
        stored = {Feature.POOL3: moments_of(all_of(array_file(9, seed=1), Feature.POOL3))}
        reference = Reference(images=None, stored=stored, facts={"path": "stats.npz"})
        assert measured(samples, reference, [Metric.FID, Metric.INCEPTION_SCORE], inception)["fid"] > 0
        with pytest.raises(InputError, match=words):
            measured(samples, reference, [Metric.FID, metric], inception)

    def test_pictures_of_another_size_are_not_compared(self, array_file: ArrayFile, inception: Cheap) -> None:
        with pytest.raises(InputError, match="the samples have 16 x 16 pixels and the reference 8 x 8"):
            measured(array_file(9), folder_reference(array_file(9, size=8)), [Metric.FID], inception)


class TestSpread:
    """Which pictures of a reference are kept."""

    @pytest.mark.parametrize("count", [1, 7, 30, 100, 1009])
    @pytest.mark.parametrize("num_kept", [1, 2, 7, 29, 30])
    def test_they_begin_with_the_first_ascend_and_lie_evenly(self, count: int, num_kept: int) -> None:
        kept = evenly_spread(count, num_kept)
        assert len(kept) == min(count, num_kept)
        assert kept[0] == 0
        gaps = {after - before for before, after in pairwise([*kept, count])}
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1

    @pytest.mark.parametrize("num_kept", [5, 6, 10_000])
    def test_all_are_kept_when_there_are_no_more(self, num_kept: int) -> None:
        assert evenly_spread(5, num_kept) == [0, 1, 2, 3, 4]

    def test_none_are_kept_when_none_are_wanted(self) -> None:
        assert evenly_spread(5, 0) == []

    def test_pictures_in_a_row_are_kept_in_proportion_to_less_than_one(self) -> None:
        sizes = [1300, 732, 1, 50, 980, 1300, 7]  # Of classes, one after the other, as ImageNet's differ.
        ends = list(accumulate(sizes))
        for num_kept in (10, 437, 1000):
            kept = evenly_spread(ends[-1], num_kept)
            for size, end in zip(sizes, ends, strict=True):
                found = sum(end - size <= index < end for index in kept)
                assert abs(found - num_kept * size / ends[-1]) < 1


class TestPass:
    """One pass over the pictures for all networks."""

    def test_a_network_sees_a_picture_once_and_none_that_nothing_is_needed_of(
        self, array_file: ArrayFile, inception: Cheap, clip: Cheap
    ) -> None:
        images = array_file(20)
        found = collect(
            images,
            [inception.network, clip.network],
            moments={Feature.POOL3},
            rows={Feature.POOL3, Feature.CLIP},
            num_rows=9,
            batch_size=4,
            description="images",
        )
        assert inception.seen == 20
        assert clip.seen == 9
        spread = [0, 2, 4, 6, 8, 11, 13, 15, 17]
        for feature in (Feature.CLIP, Feature.POOL3):
            torch.testing.assert_close(found.rows[feature], all_of(images, feature)[spread])
        assert found.moments[Feature.POOL3].count == 20

    @pytest.mark.parametrize("moments", [set(), {Feature.POOL3}], ids=["rows alone", "moments too"])
    @pytest.mark.parametrize("world", [1, 2, 3, 5])
    @pytest.mark.parametrize("batch_size", [1, 4, 50])
    def test_the_ranks_together_have_the_kept_rows_whatever_the_batch(
        self,
        array_file: ArrayFile,
        inception: Cheap,
        clip: Cheap,
        monkeypatch: pytest.MonkeyPatch,
        moments: set[Feature],
        world: int,
        batch_size: int,
    ) -> None:
        """Without a process group a rank's rows are zero where another rank's are, so that their sum is the whole."""
        images, total = array_file(20), torch.zeros(9, 5)
        monkeypatch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            total += rows_of(images, clip, inception, num_rows=9, moments=moments, batch_size=batch_size)
        torch.testing.assert_close(total, all_of(images, Feature.CLIP)[evenly_spread(20, 9)])
        assert clip.seen == 9


class TestNotes:
    """The result says what keeps it from being compared."""

    def notes(self, samples: Images, reference: Reference | None, *networks: Cheap, **settings: Any) -> str:
        found = [network.network for network in networks]
        metrics = [Metric.FD_DINOV2]
        result = measure(samples, reference, metrics, found, settings=Settings(**settings), batch_size=7)
        return "; ".join(result.notes)

    def test_few_samples_jpegs_grey_pictures_and_unpublished_weights_are_noted(
        self, array_file: ArrayFile, dinov2: Cheap
    ) -> None:
        samples = array_file(9)
        facts = {**samples.facts, "path": "here", "jpeg": 2, "greyscale": 3}
        reference = folder_reference(array_file(9, seed=1))
        notes = self.notes(replace(samples, facts=facts), reference, dinov2)
        assert "dinov2 is cheap" in notes
        assert "9 samples, not 50000" in notes
        assert "2 of the 9 pictures in here are JPEG" in notes
        assert "3 of the 9 pictures in here are greyscale" in notes
        assert "spread evenly" not in notes

    def test_a_reference_of_which_not_all_is_seen_is_noted(self, array_file: ArrayFile, dinov2: Cheap) -> None:
        notes = self.notes(array_file(9), folder_reference(array_file(9, seed=1)), dinov2, num_kept=5)
        assert "see 5 of the reference's 9 pictures, spread evenly over the file order" in notes

    def test_statistics_that_had_to_be_computed_beside_stored_ones_are_noted(
        self, array_file: ArrayFile, dinov2: Cheap
    ) -> None:
        real = array_file(9, seed=1)
        reference = replace(folder_reference(real), stored={Feature.POOL3: moments_of(torch.randn(5, 2))})
        assert "no statistics of dinov2; they are of its 9 pictures" in self.notes(array_file(9), reference, dinov2)


class TestNetworks:
    """Only what is needed is loaded, and what is missing is named before."""

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("inception", "the file pt_inception-2015-12-05-6726825d.pth is needed: give it with --inception PATH"),
            ("dinov2", "a local folder of facebook/dinov2-large is needed: give it with --dinov2 PATH"),
            ("clip", "a local folder of openai/clip-vit-large-patch14-336 is needed: give it with --clip PATH"),
        ],
    )
    def test_missing_weights_are_named_with_their_option(self, name: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            load_networks({name}, Weights(), torch.device("cpu"))

    def test_every_metric_knows_a_network_that_has_its_feature(
        self, inception: Cheap, dinov2: Cheap, clip: Cheap
    ) -> None:
        networks = {network.network.name: network.network for network in (inception, dinov2, clip)}
        for metric in Metric:
            assert metric.feature in networks[metric.network].features
