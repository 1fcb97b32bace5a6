"""Which seeds there are: torch's CPU generator reads the low 32 bits of a seed only, so that larger ones repeat."""

from collections.abc import Sequence

from ard.core.errors import InputError

NUM_SEEDS = 2**32


def require_seed(name: str, seed: int) -> None:
    """InputError unless `seed` is one of the seeds; `name` says where it comes from."""
    if not 0 <= seed < NUM_SEEDS:
        raise InputError(f"{name} is {seed}; allowed: 0 to {NUM_SEEDS - 1}, because larger seeds repeat the noises")


def in_words(seeds: Sequence[int]) -> str:
    """Seeds as `--seeds` takes them: 5-9 where they follow one another."""
    together = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}-{seeds[-1]}" if together else ",".join(map(str, seeds))
