from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.data.loader import IGNORE_INDEX, Loader, evaluation_batches, permute
from weightdecay.errors import ConfigError, DataError


def counting(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Tokens that tell their own position."""
    return np.arange(count, dtype=np.uint16)


@given(length=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(length), length, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(length))


@given(length=st.integers(2**40, 2**50), seed=st.integers(0, 9), first=st.integers(0, 2**39))
def test_the_order_of_very_many_windows_is_as_cheap_as_a_few_and_repeats_none(
    length: int, seed: int, first: int
) -> None:
    order = permute(np.arange(first, first + 1000), length, seed, 0)
    assert len(np.unique(order)) == 1000
    assert order.min() >= 0
    assert order.max() < length


def test_an_order_is_shuffled_evenly_and_anew_each_epoch_and_seed() -> None:
    """Chi-square of where each of 12 windows lands over 4,000 epochs: 11·11 degrees of freedom, 5 σ is 199."""
    epochs, length = 4000, 12
    landed = np.zeros((length, length))
    for epoch in range(epochs):
        landed[np.arange(length), permute(np.arange(length), length, 0, epoch)] += 1
    expected = epochs / length
    assert ((landed - expected) ** 2 / expected).sum() < 199
    orders = {permute(np.arange(100), 100, seed, epoch).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_neighbours_are_not_neighbours_after_a_shuffle() -> None:
    for length in (1000, 1024, 21_727):
        order = permute(np.arange(length), length, 1, 0)
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.01
        assert abs(np.corrcoef(np.arange(length), order)[0, 1]) < 0.1


@given(
    windows=st.integers(1, 40),
    context=st.integers(1, 9),
    extra=st.integers(0, 8),
    sequences=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_one_epoch_visits_every_window_once_even_where_steps_straddle_epochs(
    windows: int, context: int, extra: int, sequences: int, seed: int
) -> None:
    loader = Loader(counting(windows * context + 1 + min(extra, context - 1)), context, sequences, seed)
    assert loader.windows == windows
    steps = -(-3 * windows // sequences)
    visited = np.concatenate([loader.window_indices(step) for step in range(steps)])
    for epoch in range(3):
        assert np.array_equal(np.sort(visited[epoch * windows : (epoch + 1) * windows]), np.arange(windows))
    assert loader.epoch_of(0) == 0
    assert loader.epoch_of(steps) >= 3


def test_each_epoch_of_a_loader_has_an_order_of_its_own() -> None:
    loader = Loader(counting(1001), context=10, sequences_per_step=100, seed=7)
    orders = {loader.window_indices(epoch).tobytes() for epoch in range(5)}
    assert len(orders) == 5


def test_a_batch_is_windows_and_the_tokens_that_follow() -> None:
    loader = Loader(counting(10 * 16 + 1), context=16, sequences_per_step=4, seed=3)
    for step in range(9):
        x, y = loader.batch(step)
        assert x.dtype == y.dtype == torch.int64
        assert x.shape == y.shape == (4, 16)
        assert x.is_contiguous()
        assert y.is_contiguous()
        assert torch.equal(y, x + 1)
        assert x[:, 0].tolist() == (16 * loader.window_indices(step)).tolist()
        assert torch.equal(x, x[:, :1] + torch.arange(16))


def test_every_token_but_the_first_is_predicted_once_an_epoch() -> None:
    loader = Loader(counting(64 * 8 + 1), context=8, sequences_per_step=4)
    targets = torch.cat([loader.batch(step)[1].flatten() for step in range(16)])
    assert torch.equal(targets.sort().values, torch.arange(1, 64 * 8 + 1))


@given(step=st.integers(0, 10**9), seed=st.integers(0, 2**32), world_size=st.integers(1, 12))
def test_the_ranks_shares_in_order_are_the_batch_of_one(step: int, seed: int, world_size: int) -> None:
    loader = Loader(counting(777), context=5, sequences_per_step=12, seed=seed)
    x, y = loader.batch(step)
    shares = [loader.batch(step, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([share[0] for share in shares]), x)
    assert torch.equal(torch.cat([share[1] for share in shares]), y)
    assert {len(share[0]) for share in shares} <= {12 // world_size, 12 // world_size + 1}


def test_a_batch_depends_on_nothing_that_came_before() -> None:
    tokens = counting(5000)
    in_order = [Loader(tokens, 8, 4, seed=1).batch(step)[0] for step in range(50)]
    loader = Loader(tokens, 8, 4, seed=1)
    for step in reversed(range(50)):
        assert torch.equal(loader.batch(step)[0], in_order[step])
    assert not torch.equal(Loader(tokens, 8, 4, seed=2).batch(0)[0], in_order[0])


def test_tokens_beyond_16_bits_reach_the_batch() -> None:
    tokens = np.array([70_000, 4_000_000_000, 1], np.uint32)
    x, y = Loader(tokens, 2, 1).batch(0)
    assert (x.tolist(), y.tolist()) == ([[70_000, 4_000_000_000]], [[4_000_000_000, 1]])


def test_fewer_tokens_than_one_window_are_refused() -> None:
    Loader(counting(17), 16, 1)
    for count in (0, 1, 16):
        with pytest.raises(DataError, match=f"{count} tokens, fewer than one window of 17") as caught:
            Loader(counting(count), 16, 1)
        assert caught.value.exit_code == 2


def test_sizes_that_make_no_sense_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Loader(counting(100), 0, -1)
    assert len(caught.value.faults) == 2
    loader = Loader(counting(100), 4, 6)
    with pytest.raises(ConfigError, match="6 sequences a step cannot be shared by 7"):
        loader.batch(0, 0, 7)
    for rank in (-1, 3):
        with pytest.raises(ConfigError, match="is not one of 3"):
            loader.batch(0, rank, 3)


@given(
    count=st.integers(2, 200),
    context=st.integers(1, 20),
    batch_size=st.integers(1, 5),
    max_tokens=st.none() | st.integers(2, 250),
    with_end=st.booleans(),
)
def test_evaluation_predicts_every_token_exactly_once_in_order(
    count: int, context: int, batch_size: int, max_tokens: int | None, with_end: bool
) -> None:
    tokens = counting(count) + 1
    batches = list(evaluation_batches(tokens, context, batch_size, max_tokens, end_of_text_id=0 if with_end else None))
    inputs = torch.cat([x.flatten() for x, _ in batches])
    targets = torch.cat([y.flatten() for _, y in batches])
    real = targets != IGNORE_INDEX
    wanted = tokens[: count if max_tokens is None else max_tokens].astype(np.int64)
    assert targets[real].tolist() == wanted[0 if with_end else 1 :].tolist()
    assert torch.equal(inputs[real], targets[real] - 1)
    assert all(len(x) <= batch_size and x.shape[1] == context for x, _ in batches)
    assert not bool(real[real.sum() :].any())  # the padding is at the very end, and shorter than a window
    assert int((~real).sum()) < context


def test_evaluation_on_nothing_is_refused() -> None:
    for count, end_of_text_id in ((0, 0), (1, None), (0, None)):
        with pytest.raises(DataError, match="too few to evaluate on"):
            list(evaluation_batches(counting(count), 4, 2, end_of_text_id=end_of_text_id))
