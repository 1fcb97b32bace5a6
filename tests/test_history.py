"""The history masks of Figure 3b, how a step reads its history, and the cache that holds it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ard.student.history import HistoryAttention, HistoryMask, KVCache, attend_all_steps
from ard.student.reference import attention, block_mask

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask


def heads(seed: int, *leading: int, tokens: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*leading, 2, tokens, 4), generator=generator, dtype=torch.float64)


def gates(num_steps: int) -> Tensor:
    return torch.randn(num_steps, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def make_cache(
    mask: HistoryMask, num_steps: int, history: HistoryAttention = HistoryAttention.GATED, history_blocks: int = 2
) -> KVCache:
    cache = KVCache(
        mask,
        history,
        num_steps=num_steps,
        history_blocks=history_blocks,
        batch=5,
        num_heads=2,
        num_tokens=3,
        head_width=4,
        like=torch.empty(0, dtype=torch.float64),
    )
    cache.store.fill_(float("nan"))  # What is read before it was written shows.
    return cache


@pytest.mark.parametrize("num_steps", [1, 2, 4, 6])
@pytest.mark.parametrize("mask", HistoryMask)
def test_the_readable_steps_are_the_masks_without_the_step_itself(mask: HistoryMask, num_steps: int) -> None:
    for step, row in enumerate(block_mask(mask, S=num_steps).tolist()):
        assert list(mask.readable(step)) == [earlier for earlier in range(step) if row[earlier]]


@pytest.mark.parametrize(("mask", "pairs"), [(DIAGONAL, 0), (WINDOW, 5), (ANCHOR, 5), (CAUSAL, 15)])
def test_the_number_of_extra_blocks_at_six_steps(mask: HistoryMask, pairs: int) -> None:
    assert sum(len(mask.readable(step)) for step in range(6)) == pairs


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("mask", HistoryMask)
def test_all_steps_at_once_read_what_the_dense_matrix_says(mask: HistoryMask, num_steps: int, gated: bool) -> None:
    q, k, v = (heads(seed, 5, num_steps) for seed in range(3))
    some_gates = gates(num_steps) if gated else None
    every_q, every_k, every_v = (x.transpose(1, 2).flatten(2, 3) for x in (q, k, v))
    dense = attention(every_q, every_k, mask=mask, S=num_steps, gates=some_gates) @ every_v
    wanted = dense.unflatten(2, (num_steps, 3)).transpose(1, 2)
    torch.testing.assert_close(attend_all_steps(q, k, v, mask=mask, gates=some_gates), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", HistoryMask)
def test_closed_gates_are_ordinary_self_attention(mask: HistoryMask) -> None:
    q, k, v = (heads(seed, 5, 4) for seed in range(3))
    own = scaled_dot_product_attention(q, k, v)
    closed = attend_all_steps(q, k, v, mask=mask, gates=torch.zeros(4, 2, dtype=torch.float64))
    torch.testing.assert_close(closed, own, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("mask", HistoryMask)
def test_step_by_step_from_the_cache_equals_all_steps_at_once(mask: HistoryMask, num_steps: int, gated: bool) -> None:
    q, k, v = (heads(seed, 5, num_steps) for seed in range(3))
    some_gates = gates(num_steps) if gated else None
    cache = make_cache(mask, num_steps, HistoryAttention.GATED if gated else HistoryAttention.SHARED)
    wanted = attend_all_steps(q, k, v, mask=mask, gates=some_gates)
    for step in range(num_steps):
        gate = None if some_gates is None else some_gates[step]
        output = cache.attend(1, step, q[:, step], k[:, step], v[:, step], gate)
        torch.testing.assert_close(output, wanted[:, step], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mask", "num_steps", "slots"),
    [(CAUSAL, 1, 0), (CAUSAL, 2, 1), (CAUSAL, 5, 4), (WINDOW, 5, 1), (ANCHOR, 1, 0), (ANCHOR, 5, 1), (DIAGONAL, 5, 0)],
)
def test_the_cache_has_a_slot_for_each_step_of_the_longest_history(
    mask: HistoryMask, num_steps: int, slots: int
) -> None:
    assert make_cache(mask, num_steps).store.shape == (2, 2, 5, 2, slots * 3, 4)
    shared = make_cache(mask, num_steps, HistoryAttention.SHARED)
    assert shared.slots == (slots + 1 if slots else 0), "and one for the step itself, when one softmax reads both"


def attend_with(cache: KVCache, block: int, steps: int) -> None:
    """Let steps whose keys are all their number, and whose values are 10 more, attend one after the other."""
    for step in range(steps):
        k = torch.full_like(heads(0, 5), float(step))
        cache.attend(block, step, k, k, k + 10, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("mask", HistoryMask)
def test_a_step_finds_the_keys_and_values_of_the_steps_that_it_may_read(mask: HistoryMask) -> None:
    for step in range(5):
        cache = make_cache(mask, 5)
        attend_with(cache, 0, step)
        k, v = cache.read(0, step)
        assert k[0, 0, ::3, 0].tolist() == list(mask.readable(step))
        assert v[0, 0, ::3, 0].tolist() == [earlier + 10 for earlier in mask.readable(step)]


@pytest.mark.parametrize("mask", [WINDOW, ANCHOR, CAUSAL])
def test_the_last_step_writes_nothing_when_the_history_has_a_softmax_of_its_own(mask: HistoryMask) -> None:
    cache = make_cache(mask, 4)
    attend_with(cache, 0, 3)
    before = cache.store.clone()
    k = torch.full_like(heads(0, 5), 3.0)
    cache.attend(0, 3, k, k, k, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(cache.store, before, rtol=0, atol=0, equal_nan=True)


def test_the_cache_keeps_blocks_apart() -> None:
    cache = make_cache(CAUSAL, 3)
    attend_with(cache, 1, 1)
    k, v = cache.read(1, 1)
    assert (k == 0).all()
    assert (v == 10).all()
    assert cache.read(0, 1)[0].isnan().all()


def test_reading_the_cache_copies_nothing() -> None:
    cache = make_cache(CAUSAL, 3)
    for part in cache.read(1, 2):
        assert part.untyped_storage().data_ptr() == cache.store.untyped_storage().data_ptr()
