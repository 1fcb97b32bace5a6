"""One pass over a set of images: the moments of all features, and the features of the first images themselves."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch

from ard.distributed import largest_over_ranks, rank_and_world, sum_over_ranks
from ard.evaluation.features.network import Feature, FeatureNetwork, FeatureRows
from ard.evaluation.images import Images
from ard.evaluation.metrics.moments import Moments, MomentsAccumulator
from ard.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Features of a set of images."""

    moments: dict[Feature, Moments] = field(default_factory=dict)
    """Of all images."""
    rows: dict[Feature, FeatureRows] = field(default_factory=dict)
    """Of the first images, in file order."""


def collect(
    images: Images,
    networks: Sequence[FeatureNetwork],
    *,
    moments: AbstractSet[Feature],
    rows: AbstractSet[Feature],
    num_rows: int,
    batch_size: int,
    description: str,
) -> Collected:
    """The moments of some features over all images, and the rows of others for the first `num_rows`.

    A network sees each image once, and those behind the last row only when its moments are asked for. Ranks share the
    images, each a stretch of the file; all of them end with the whole.
    """
    count = images.count if moments else min(num_rows, images.count)
    mine = _stretch(count)
    accumulators = {feature: MomentsAccumulator() for feature in moments}
    kept: dict[Feature, list[FeatureRows]] = {feature: [] for feature in rows}
    position = mine.start
    with progress_bar(len(mine), description, unit="img") as bar:
        for pixels in images.batches(mine, batch_size):
            at_work = [one for one in networks if moments & set(one.features) or position < num_rows]
            features = {name: values for one in at_work for name, values in one.extract(pixels).items()}
            for name in features.keys() & moments:
                accumulators[name].update(features[name])
            for name in features.keys() & rows:
                kept[name].append(features[name][: max(0, num_rows - position)])
            position += len(pixels)
            bar.update(len(pixels))
    for feature in sorted(accumulators):  # In one order on all ranks.
        accumulators[feature].all_reduce()
    total = min(num_rows, count)
    return Collected(
        moments={name: accumulator.moments() for name, accumulator in accumulators.items()},
        rows={name: _gather(kept[name], start=mine.start, total=total) for name in sorted(kept)},
    )


def _stretch(count: int) -> range:
    """The images of one rank, contiguous: the rows of the ranks, one after the other, are in file order."""
    rank, world = rank_and_world()
    return range(count * rank // world, count * (rank + 1) // world)


def _gather(parts: Sequence[FeatureRows], *, start: int, total: int) -> FeatureRows:
    """The rows of all ranks: their sum, where each has zeros in place of the others' rows."""
    own = torch.cat(list(parts)) if parts else torch.zeros(0, 0)
    if rank_and_world()[1] == 1:
        return own
    everyone = torch.zeros(total, largest_over_ranks(own.shape[1]))
    everyone[start : start + len(own)] = own.view(len(own), everyone.shape[1])
    return sum_over_ranks(everyone)
