"""The ADM evaluation protocol: which features a metric needs, from which weights, and the numbers themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

from ard.core.config import to_plain
from ard.core.errors import InputError
from ard.core.ranks import rank_and_world
from ard.core.types import Features, OtherFeatures
from ard.evaluation.adm import STATISTICS, Reference, write_reference
from ard.evaluation.feature_pass import Collected, collect, evenly_spread
from ard.evaluation.features.clip import load_clip
from ard.evaluation.features.dinov2 import load_dinov2
from ard.evaluation.features.inception import PUBLISHED, load_inception
from ard.evaluation.features.network import Feature, FeatureNetwork
from ard.evaluation.images import Images
from ard.evaluation.metrics.clip_mmd import cmmd
from ard.evaluation.metrics.frechet import frechet_distance
from ard.evaluation.metrics.inception_score import inception_score
from ard.evaluation.metrics.kernel_distance import kernel_distance
from ard.evaluation.metrics.precision_recall import Distances, precision_recall
from ard.evaluation.result import Result, evaluator, notes_on

NUM_KEPT = 10_000  # So many pictures of a reference ADM keeps for precision and recall.

LOADERS = {
    "inception": (load_inception, f"the file {PUBLISHED}"),
    "dinov2": (load_dinov2, "a local folder of facebook/dinov2-large"),
    "clip": (load_clip, "a local folder of openai/clip-vit-large-patch14-336"),
}


class Metric(StrEnum):
    """What `--metrics` names. The first four are ADM's."""

    FID = "fid"
    SFID = "sfid"
    INCEPTION_SCORE = "is"
    PRECISION_RECALL = "pr"
    KID = "kid"
    FD_DINOV2 = "fd-dinov2"
    CMMD = "cmmd"

    @property
    def feature(self) -> Feature:
        """What it is measured on."""
        match self:
            case Metric.FID | Metric.PRECISION_RECALL | Metric.KID:
                return Feature.POOL3
            case Metric.SFID:
                return Feature.SPATIAL
            case Metric.INCEPTION_SCORE:
                return Feature.PROBABILITIES
            case Metric.FD_DINOV2:
                return Feature.DINOV2
            case Metric.CMMD:
                return Feature.CLIP

    @property
    def network(self) -> str:
        """The network that has the feature."""
        return {Feature.DINOV2: "dinov2", Feature.CLIP: "clip"}.get(self.feature, "inception")

    @property
    def is_frechet(self) -> bool:
        """Whether moments are enough; the other metrics need the features of every image."""
        return self in {Metric.FID, Metric.SFID, Metric.FD_DINOV2}

    @property
    def compares(self) -> bool:
        """Whether it needs a reference; the Inception score is of the samples alone."""
        return self is not Metric.INCEPTION_SCORE


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the networks lie; None for one that is not there."""

    inception: Path | None = None
    dinov2: Path | None = None
    clip: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What else decides the numbers."""

    num_kept: int = NUM_KEPT
    """So many pictures of the reference, evenly spread over the file order, serve what needs more than statistics."""
    neighbours: int = 3
    """k of precision and recall."""
    pr_distances: Distances = Distances.EXACT
    """How precision and recall compare; fp16 is ADM's way."""
    split_size: int = 5000
    """Images per split of the Inception score, in file order."""
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    """At most: no more than there are images."""
    kid_seed: int = 0


def load_networks(names: set[str], weights: Weights, device: torch.device) -> list[FeatureNetwork]:
    """The networks called `names`, in a fixed order; InputError names the option of weights that were not given."""
    check_weights(names, weights)
    return [load(getattr(weights, name), device) for name, (load, _) in LOADERS.items() if name in names]


def check_weights(names: set[str], weights: Weights) -> None:
    """InputError that names the file and the option when weights were not given."""
    for name in sorted(names):
        if getattr(weights, name) is None:
            raise InputError(f"{LOADERS[name][1]} is needed: give it with --{name} PATH; nothing is downloaded")


def check_reference(reference: Reference | None, metrics: Sequence[Metric], samples: Images) -> None:
    """InputError when a metric needs what the reference lacks, or when the pictures differ in size."""
    for metric in metrics:
        if metric.compares and reference is None:
            raise InputError(f"{metric} compares with a reference: give --ref, an .npz or a folder of images")
        stored = reference is not None and metric.is_frechet and metric.feature in reference.stored
        if metric.compares and reference is not None and reference.images is None and not stored:
            lacking = f"arr_0 or {STATISTICS[metric.feature][0]}" if metric.is_frechet else "arr_0"
            raise InputError(f"{metric} needs {lacking}, which {reference.facts['path']} does not have; leave it out")
    pictures = reference.images if reference else None
    if pictures and (pictures.height, pictures.width) != (samples.height, samples.width):
        raise InputError(
            f"the samples have {samples.width} x {samples.height} pixels and the reference {pictures.width} x "
            f"{pictures.height}; give pictures of one size"
        )


def measure(
    samples: Images,
    reference: Reference | None,
    metrics: Sequence[Metric],
    networks: Sequence[FeatureNetwork],
    *,
    settings: Settings,
    batch_size: int,
) -> Result:
    """The numbers of `metrics`: one pass over the samples, and one over the reference for what it does not store."""
    check_reference(reference, metrics, samples)
    theirs = _collect_reference(reference, metrics, networks, num_rows=settings.num_kept, batch_size=batch_size)
    ours = collect(
        samples,
        networks,
        moments={metric.feature for metric in metrics if metric.is_frechet},
        rows={metric.feature for metric in metrics if not metric.is_frechet},
        num_rows=samples.count,
        batch_size=batch_size,
        description="samples",
    )
    settings = _fitting(settings, ours, theirs)
    scores = [_score(metric, ours, theirs, settings) for metric in metrics]
    return Result(
        metrics={name: value for score in scores for name, value in score.items()},
        samples=samples.plain(),
        reference=reference.plain() if reference else None,
        networks={network.name: network.facts for network in networks},
        settings=to_plain(settings),
        notes=notes_on(
            samples, reference, networks, num_kept=settings.num_kept, computed=_computed(reference, metrics)
        ),
    )


def make_reference(
    out: Path, images: Images, networks: Sequence[FeatureNetwork], *, num_kept: int = NUM_KEPT, batch_size: int
) -> None:
    """Write an ADM file: statistics of all `images`, and `num_kept` of them, spread evenly over the file order."""
    features = {feature for network in networks for feature in network.features} & STATISTICS.keys()
    collected = collect(
        images, networks, moments=features, rows=set(), num_rows=0, batch_size=batch_size, description="reference"
    )
    provenance = {
        "evaluator": evaluator(),
        "images": images.plain(),
        "networks": {network.name: network.facts for network in networks},
    }
    if rank_and_world()[0] == 0:
        kept = evenly_spread(images.count, num_kept)
        write_reference(out, images, collected.moments, kept=kept, batch_size=batch_size, provenance=provenance)


def _collect_reference(
    reference: Reference | None,
    metrics: Sequence[Metric],
    networks: Sequence[FeatureNetwork],
    *,
    num_rows: int,
    batch_size: int,
) -> Collected:
    """What is compared with: stored statistics as they are, the rest from the reference's pictures."""
    stored = dict(reference.stored) if reference else {}
    rows = {metric.feature for metric in metrics if metric.compares and not metric.is_frechet}
    missing = _computed(reference, metrics)
    if reference is None or reference.images is None or not missing | rows:
        return Collected(moments=stored)
    found = collect(
        reference.images,
        [network for network in networks if (missing | rows) & set(network.features)],
        moments=missing,
        rows=rows,
        num_rows=num_rows,
        batch_size=batch_size,
        description="reference",
    )
    return Collected(moments={**stored, **found.moments}, rows=found.rows)


def _computed(reference: Reference | None, metrics: Sequence[Metric]) -> set[Feature]:
    """The features whose moments the reference does not store."""
    stored = reference.stored if reference else {}
    return {metric.feature for metric in metrics if metric.is_frechet} - stored.keys()


def _fitting(settings: Settings, samples: Collected, reference: Collected) -> Settings:
    """KID's subsets cannot be larger than the smaller set."""
    sizes = [len(found.rows[Feature.POOL3]) for found in (samples, reference) if Feature.POOL3 in found.rows]
    return replace(settings, kid_subset_size=min([settings.kid_subset_size, *sizes]))


def _score(metric: Metric, samples: Collected, reference: Collected, settings: Settings) -> dict[str, float]:
    """The numbers of one metric under their names in the result. Only Inception's are called fid and kid."""
    feature = metric.feature
    match metric:
        case Metric.FID | Metric.SFID | Metric.FD_DINOV2:
            name = metric.replace("-", "_")
            return {name: frechet_distance(samples.moments[feature], reference.moments[feature])}
        case Metric.INCEPTION_SCORE:
            score = inception_score(samples.rows[feature], split_size=settings.split_size)
            return {"inception_score": score.mean, "inception_score_std": score.std}
        case Metric.PRECISION_RECALL:
            real, generated = reference.rows[feature], samples.rows[feature]
            how = settings.pr_distances
            both = precision_recall(real, generated, neighbours=settings.neighbours, distances=how)
            return {"precision": both.precision, "recall": both.recall}
        case Metric.KID:
            return _kid(samples.rows[feature], reference.rows[feature], settings)
        case Metric.CMMD:
            return {"cmmd": cmmd(samples.rows[feature], reference.rows[feature])}


def _kid(samples: Features, reference: OtherFeatures, settings: Settings) -> dict[str, float]:
    distance = kernel_distance(
        samples,
        reference,
        subsets=settings.kid_subsets,
        subset_size=settings.kid_subset_size,
        seed=settings.kid_seed,
    )
    return {"kid": distance.mean, "kid_std": distance.std}
