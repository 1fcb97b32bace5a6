"""One pass over a set of images: the moments of all features, and the features of some images themselves."""

from bisect import bisect_left
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch

from ard.core.distributed import largest_over_ranks, sum_over_ranks
from ard.core.progress import progress_bar
from ard.core.ranks import rank_and_world
from ard.evaluation.features.network import Feature, FeatureNetwork, FeatureRows
from ard.evaluation.images import Images, RgbPixels, parts_of
from ard.evaluation.metrics.moments import Moments, MomentsAccumulator


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Features of a set of images."""

    moments: dict[Feature, Moments] = field(default_factory=dict)
    """Of all images."""
    rows: dict[Feature, FeatureRows] = field(default_factory=dict)
    """Of images that are spread evenly over the file order, in that order."""


def evenly_spread(count: int, num_kept: int) -> list[int]:
    """The indices floor(i * count / num_kept) among `count` pictures, all of them when there are no more than that.

    From a folder sorted by class every class gets its share: of n pictures in a row, num_kept * n / count are chosen,
    give or take less than one.
    """
    kept = min(num_kept, count)
    return [place * count // kept for place in range(kept)]


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
    """The moments of some features over all images, and the rows of others for `num_rows`, spread evenly over the file.

    A network sees each image once, and those without a row only when its moments are asked for. Ranks share the
    images, each a stretch of the file; all of them end with the whole.
    """
    stretch, chosen = _stretch(images.count), evenly_spread(images.count, num_rows)
    first, last = (bisect_left(chosen, end) for end in (stretch.start, stretch.stop))
    mine = stretch if moments else chosen[first:last]
    with_row = set(chosen[first:last])
    accumulators = {feature: MomentsAccumulator() for feature in moments}
    kept: dict[Feature, list[FeatureRows]] = {feature: [] for feature in rows}
    with progress_bar(len(mine), description, unit="img") as bar:
        for part, pixels in zip(parts_of(mine, batch_size), images.batches(mine, batch_size), strict=True):
            picked = [place for place, index in enumerate(part) if index in with_row]
            everyone, some = _extract(networks, pixels, picked, moments)
            for name in everyone.keys() & moments:
                accumulators[name].update(everyone[name])
            for name in some.keys() & rows:
                kept[name].append(some[name])
            bar.update(len(part))
    for feature in sorted(accumulators):  # In one order on all ranks.
        accumulators[feature].all_reduce()
    return Collected(
        moments={name: accumulator.moments() for name, accumulator in accumulators.items()},
        rows={name: _gather(kept[name], start=first, total=len(chosen)) for name in sorted(kept)},
    )


def _stretch(count: int) -> range:
    """The images of one rank, contiguous: the rows of the ranks, one after the other, are in file order."""
    rank, world = rank_and_world()
    return range(count * rank // world, count * (rank + 1) // world)


def _extract(
    networks: Sequence[FeatureNetwork], pixels: RgbPixels, picked: list[int], moments: AbstractSet[Feature]
) -> tuple[dict[Feature, FeatureRows], dict[Feature, FeatureRows]]:
    """The features of all pictures, by the networks whose moments are asked for, and the picked pictures' by any."""
    everyone: dict[Feature, FeatureRows] = {}
    some: dict[Feature, FeatureRows] = {}
    for network in networks:
        if moments & set(network.features):
            features = network.extract(pixels)
            everyone |= features
            some |= {name: values[picked] for name, values in features.items()}
        elif picked:
            some |= network.extract(pixels[picked])
    return everyone, some


def _gather(parts: Sequence[FeatureRows], *, start: int, total: int) -> FeatureRows:
    """The rows of all ranks: their sum, where each has zeros in place of the others' rows."""
    own = torch.cat(list(parts)) if parts else torch.zeros(0, 0)
    if rank_and_world()[1] == 1:
        return own
    everyone = torch.zeros(total, largest_over_ranks(own.shape[1]))
    everyone[start : start + len(own)] = own.view(len(own), everyone.shape[1])
    return sum_over_ranks(everyone)
