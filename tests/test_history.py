"""The history masks of Figure 3b, how a step reads its history, and the cache that holds it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ard.history import HistoryAttention, HistoryMask, KVCache, attend, attend_all_steps, block_mask

DIAGONAL, WINDOW, ANCHOR, CAUSAL = HistoryMask

FIGURE_3B = {  # Rows are queries, columns keys, in generation order; copied from the figure by hand.
    DIAGONAL: ["x...", ".x..", "..x.", "...x"],
    WINDOW: ["x...", "xx..", ".xx.", "..xx"],
    ANCHOR: ["x...", "xx..", "x.x.", "x..x"],
    CAUSAL: ["x...", "xx..", "xxx.", "xxxx"],
}


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


@pytest.mark.parametrize("mask", HistoryMask)
def test_the_masks_are_figure_3bs(mask: HistoryMask) -> None:
    wanted = torch.tensor([[cell == "x" for cell in row] for row in FIGURE_3B[mask]])
    assert torch.equal(block_mask(mask, num_steps=4, num_tokens=1), wanted)


@pytest.mark.parametrize("mask", HistoryMask)
def test_the_readable_steps_are_figure_3bs_without_the_step_itself(mask: HistoryMask) -> None:
    for step, row in enumerate(FIGURE_3B[mask]):
        assert list(mask.readable(step)) == [earlier for earlier in range(step) if row[earlier] == "x"]


@pytest.mark.parametrize("mask", HistoryMask)
def test_a_block_mask_gives_every_token_of_a_step_the_same_rights(mask: HistoryMask) -> None:
    dense, steps = (block_mask(mask, num_steps=4, num_tokens=tokens) for tokens in (3, 1))
    assert torch.equal(dense.view(4, 3, 4, 3), steps.view(4, 1, 4, 1).expand(4, 3, 4, 3))


@pytest.mark.parametrize(("mask", "pairs"), [(DIAGONAL, 0), (WINDOW, 5), (ANCHOR, 5), (CAUSAL, 15)])
def test_the_number_of_extra_blocks_at_six_steps(mask: HistoryMask, pairs: int) -> None:
    assert sum(len(mask.readable(step)) for step in range(6)) == pairs


def test_shared_attention_is_one_softmax_over_history_and_own_keys() -> None:
    q, k, v = (heads(seed, 5) for seed in range(3))
    k_history, v_history = (heads(seed, 5, tokens=6) for seed in (3, 4))
    scores = q @ torch.cat([k, k_history], 2).transpose(2, 3) / 2
    wanted = scores.softmax(-1) @ torch.cat([v, v_history], 2)
    torch.testing.assert_close(attend(q, k, v, k_history, v_history, None), wanted, rtol=0, atol=1e-12)


def test_gated_attention_adds_a_softmax_of_its_own_per_head() -> None:
    q, k, v = (heads(seed, 5) for seed in range(3))
    k_history, v_history = (heads(seed, 5, tokens=6) for seed in (3, 4))
    wanted = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
    history = (q @ k_history.transpose(2, 3) / 2).softmax(-1) @ v_history
    wanted = torch.stack([wanted[:, 0] + 0.5 * history[:, 0], wanted[:, 1] - 2 * history[:, 1]], dim=1)
    gate = torch.tensor([0.5, -2], dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v, k_history, v_history, gate), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gate", [None, torch.ones(2, dtype=torch.float64)])
def test_without_history_a_step_reads_itself(gate: Tensor | None) -> None:
    q, k, v = (heads(seed, 5) for seed in range(3))
    nothing = heads(0, 5, tokens=0)
    own = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v, nothing, nothing, gate), own, rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("mask", HistoryMask)
def test_all_steps_at_once_equal_dense_masked_attention(mask: HistoryMask, num_steps: int) -> None:
    q, k, v = (heads(seed, 5, num_steps) for seed in range(3))
    flat = [x.transpose(1, 2).flatten(2, 3) for x in (q, k, v)]
    dense = scaled_dot_product_attention(*flat, attn_mask=block_mask(mask, num_steps=num_steps, num_tokens=3))
    wanted = dense.unflatten(2, (num_steps, 3)).transpose(1, 2)
    torch.testing.assert_close(attend_all_steps(q, k, v, mask=mask, gates=None), wanted, rtol=0, atol=1e-12)


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
