"""An epoch's order depends on (seed, epoch) alone; ranks, accumulation and restarts only choose which part of it to read."""
from __future__ import annotations

import hashlib
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinview.data.dataset.order import BatchSampler, steps_per_epoch
from twinview.data.dataset.orders import Shuffled, shuffled
from twinview.errors import DataError

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


formats = st.sampled_from([1, 2])


def starts(counts: list[int]) -> Any:
    return np.cumsum([0, *counts])


def epoch_order(seed: int, epoch: int, begins: Any, window: int = 0, number: int = 2) -> Any:
    """A whole epoch."""
    order = shuffled(begins, seed, window, number)
    return order.epoch(epoch, order.samples)[: order.samples]


@settings(deadline=None)
@given(sizes, st.integers(0, 2**63), st.integers(0, 10**6), st.integers(0, 15), formats)
def test_every_sample_once(counts: list[int], seed: int, epoch: int, window: int, number: int) -> None:
    order = epoch_order(seed, epoch, starts(counts), window, number)
    assert sorted(order) == list(range(sum(counts)))
    assert np.array_equal(order, epoch_order(seed, epoch, starts(counts), window, number))


@settings(deadline=None)
@given(sizes, st.integers(1, 15), formats)
def test_a_window_is_read_to_its_end_before_the_next(counts: list[int], window: int, number: int) -> None:
    order = epoch_order(1, 2, starts(counts), window, number)
    shard = list(np.searchsorted(starts(counts), order, side="right") - 1)
    while shard:
        block = list(dict.fromkeys(shard))[:window]  # the next shards, by first appearance
        length = sum(counts[s] for s in block)
        assert set(shard[:length]) == set(block)
        shard = shard[length:]


@pytest.mark.parametrize("number", [1, 2])
def test_orders_differ_by_seed_epoch_and_window(number: int) -> None:
    many = starts([50] * 10)
    given_ = ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 3), (0, 1, 3))
    orders = [epoch_order(seed, epoch, many, window, number) for seed, epoch, window in given_]
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_the_order_is_the_same_in_every_version() -> None:
    """Checkpoints of one version go on in the next: these figures never change."""
    made = [epoch_order(3, 4, starts([1000] * 5), window, number).astype("<i8") for number in (1, 2) for window in (0, 2)]
    assert [hashlib.sha256(o.tobytes()).hexdigest()[:16] for o in made] == ["0c7d6531aeaec830", "3df7990696066ff6", "2406ae7b1dca4baf", "96bab8ebb0614cb1"]


@pytest.mark.parametrize("number", [1, 2])
def test_positions_are_uniform(number: int) -> None:
    """Each of 10 samples lies at each of 10 places equally often (chi-square, 81 degrees of freedom: 99.9 % lie below 126)."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), epoch_order(0, epoch, np.array([0, 10]), number=number)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 126


def plan(world: int = 1, rank: int = 0, window: int = 0, number: int = 2, **changes: Any) -> BatchSampler:
    order = shuffled(starts([30, 1, 70, 22]), 9, window, number)
    return BatchSampler(**{"order": order, "global_batch": 28, "accumulation": 1, **changes}, rank=rank, world=world)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4, 7]), st.sampled_from([1, 2]), st.integers(0, 3), st.integers(0, 20), formats)
def test_ranks_share_the_same_global_batches(world: int, accumulation: int, window: int, start: int, number: int) -> None:
    if 28 % (world * accumulation):
        with pytest.raises(DataError, match=f"28 is no multiple of {world} ranks x {accumulation} accumulated .* Write a multiple of"):
            plan(world, window=window, accumulation=accumulation)
        return
    each = 28 // (world * accumulation)
    whole = list(plan(window=window, accumulation=accumulation, number=number).batches(0, 30))
    changes = {"window": window, "accumulation": accumulation, "number": number}
    ranks = [list(plan(world, rank, **changes).batches(start, 30 - start)) for rank in range(world)]
    assert all(len(batches) == (30 - start) * accumulation and all(len(b) == each for b in batches) for batches in ranks)
    assert [[place for b in parts for place in b] for parts in zip(*ranks)] == whole[start * accumulation :]


def test_epochs_follow_each_other_and_drop_another_remainder_each_time() -> None:
    places = [place for batch in plan().batches(0, 12) for place in batch]  # 123 samples: 4 steps an epoch, 11 samples left over
    by_epoch = [[i for e, i in places if e == epoch] for epoch in range(3)]
    assert [e for e, _ in places] == sorted(e for e, _ in places) and all(len(set(ids)) == 112 for ids in by_epoch)
    assert len({frozenset(range(123)) - frozenset(ids) for ids in by_epoch}) == 3
    assert by_epoch[1] == list(epoch_order(9, 1, starts([30, 1, 70, 22]))[:112])


def test_it_does_not_end_unless_it_is_told_to() -> None:
    assert len(list(islice(plan().batches(3), 50))) == 50 and list(plan().batches(3, 0)) == []


def test_a_set_smaller_than_a_batch_is_refused() -> None:
    assert steps_per_epoch(128, 128) == 1
    with pytest.raises(DataError, match=r"\[run\] batch_size: 128 is more than the 123 samples of the shards\. Write 123 or less\."):
        plan(global_batch=128)


# ---- samples that a part chooses
both = pytest.mark.parametrize("number", [1, 2])


class Chosen:
    """Epochs of four shards, one of them empty, whose samples are chosen by numbers."""

    def __init__(self, numbers: Any, number: int, seed: int = 3, window: int = 0) -> None:
        array = np.asarray(numbers)
        self.base: Shuffled = shuffled(starts([7, 0, 5, 8]), seed, window, number)
        self.order = self.base.chosen(array.astype(np.int64 if array.dtype.kind == "i" else np.float64))

    def epoch(self, epoch: int, count: int) -> Any:
        return self.order.epoch(epoch, count)[:count]


@both
@pytest.mark.parametrize("window", [0, 2])
def test_the_same_number_for_all_is_the_shuffle_without_numbers(window: int, number: int) -> None:
    for numbers in (np.ones(20, np.int64), np.full(20, 0.3)):
        order = Chosen(numbers, number, window=window)
        assert np.array_equal(order.epoch(2, 20), order.base.epoch(2, 20)[:20])


@both
def test_counts_are_kept_and_each_return_of_a_sample_is_numbered(number: int) -> None:
    counts = np.array([0, 3, 1, 0, 5, 1] + [1] * 14)
    order = Chosen(counts, number).epoch(1, int(counts.sum()))
    assert np.array_equal(np.bincount(order % 20, minlength=20), counts) and len(set(order.tolist())) == len(order)
    assert sorted(order[order % 20 == 4] // 20) == [0, 1, 2, 3, 4]
    assert len(Chosen(counts, number).epoch(1, 12)) == 12 and np.array_equal(Chosen(counts, number).epoch(1, 12), order[:12])


@both
def test_weights_give_each_sample_its_share_rounded_up_or_down(number: int) -> None:
    weights = np.random.default_rng(0).random(20)
    weights[3] = 0
    totals = np.zeros(20)
    for epoch in range(400):
        found = np.bincount(Chosen(weights, number).epoch(epoch, 20) % 20, minlength=20)
        share = weights / weights.sum() * 20
        assert found.sum() == 20 and (found >= np.floor(share)).all() and (found <= np.floor(share) + 1).all() and found[3] == 0
        totals += found
    assert np.abs(totals / 400 - share).max() < 0.1  # four deviations of a coin


@both
def test_the_order_is_a_function_of_seed_epoch_and_numbers_alone_and_keeps_to_its_window(number: int) -> None:
    weights = np.arange(20) + 1.0
    one = Chosen(weights, number, window=1).epoch(5, 20)
    assert np.array_equal(one, Chosen(weights, number, window=1).epoch(5, 20))
    assert not np.array_equal(one, Chosen(weights, number, window=1).epoch(6, 20))
    assert not np.array_equal(one, Chosen(weights, number, seed=4, window=1).epoch(5, 20))
    shards = np.searchsorted(np.array([0, 7, 7, 12, 20]), one % 20, side="right")
    assert len(np.flatnonzero(np.diff(shards))) == 2  # three shards that hold something, one after another


@both
def test_ranks_and_micro_batches_share_what_was_chosen(number: int) -> None:
    order: Any = Chosen(np.arange(20) + 1.0, number).order
    whole = [place for batch in BatchSampler(order=order, global_batch=4, accumulation=1, rank=0, world=1).batches(5, 5) for place in batch]
    parts = [list(BatchSampler(order=order, global_batch=4, accumulation=2, rank=rank, world=2).batches(5, 5)) for rank in (0, 1)]
    assert [place for step in range(5) for a in (0, 1) for rank in (0, 1) for place in parts[rank][2 * step + a]] == whole
