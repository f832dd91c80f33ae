"""Permutations that are worked out place by place: one to one at any size, their own inverse's inverse, and even.  Needs no torch."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinview.data.dataset.keyed_order import BLOCK, Mixed, Shuffled
from twinview.data.dataset.permutation import keys_of, permute, unpermute


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_one_to_one_and_back(n: int, key: int) -> None:
    there = permute(np.arange(n), n, key)
    assert sorted(there.tolist()) == list(range(n)) and np.array_equal(unpermute(there, n, key), np.arange(n))


@settings(deadline=None)
@given(st.integers(1, 2**61), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**61), min_size=1, max_size=20))
def test_large_sizes(n: int, key: int, given_: list[int]) -> None:
    x = np.array([i % n for i in given_])
    there = permute(x, n, key)
    assert ((there >= 0) & (there < n)).all() and np.array_equal(unpermute(there, n, key), x)


def test_sizes_and_keys_of_each_number_are_those_of_all() -> None:
    n, key = np.array([5, 1000, 7, 10**9]), keys_of(3, np.arange(4))
    x = np.array([4, 999, 0, 123456789])
    assert permute(x, n, key).tolist() == [int(permute(x[i : i + 1], int(n[i]), int(key[i]))[0]) for i in range(4)]


@pytest.mark.parametrize("n", [3, 5])
def test_all_orders_are_as_likely(n: int) -> None:
    """Chi-square over all n! orders of 12 000 keys (5 and 119 degrees of freedom: 99.9 % lie below 20.5 and 173.6)."""
    keys = np.repeat(keys_of(7, np.arange(12_000)), n)
    orders = permute(np.tile(np.arange(n), 12_000), n, keys).reshape(-1, n)
    counts = np.unique(orders @ n ** np.arange(n), return_counts=True)[1]
    every = {3: 6, 5: 120}[n]
    assert len(counts) == every and ((counts - 12_000 / every) ** 2).sum() / (12_000 / every) < {3: 20.5, 5: 173.6}[n]


def test_neighbors_are_strangers_afterwards() -> None:
    """The step between the images of two neighbors is any but 0 (chi-square of 50 000 such steps of 40 places, 38 degrees: 99.9 % below 70.7)."""
    there = permute(np.tile(np.arange(40), 1300), 40, np.repeat(keys_of(1, np.arange(1300)), 40)).reshape(-1, 40)
    steps = np.bincount(((there[:, 1:] - there[:, :-1]) % 40).ravel(), minlength=40)[1:]
    assert ((steps - steps.mean()) ** 2 / steps.mean()).sum() < 70.7


def test_parts_of_a_billion_samples_are_read_where_they_lie() -> None:
    """The middle of an epoch of 10^9 samples in 100 000 shards: windows hold, places lead back, and another epoch is another order."""
    starts = np.arange(100_001) * 10_000
    order = Shuffled(starts=starts, seed=4, window=16)
    epoch = order.epoch(7, order.samples)
    at = np.arange(16 * 10_000 * 3000 - 50, 16 * 10_000 * 3000 + 50)  # around the end of a window
    read = epoch.at(at)
    assert np.array_equal(epoch.positions(read), at) and np.array_equal(epoch[int(at[0]) : int(at[-1]) + 1], read)
    before, after = set((read[:50] // 10_000).tolist()), set((read[50:] // 10_000).tolist())
    assert len(before) <= 16 and len(after) <= 16 and not before & after
    spans = epoch.spans()
    assert before | after <= set(spans.shards[(spans.first <= at[-1]) & (spans.last >= at[0])].tolist())
    assert not np.array_equal(order.epoch(8, order.samples).at(at), read)


def test_the_middle_of_a_mixture_of_a_billion_samples() -> None:
    """Sources keep their shares and their windows, and each of them goes on from block to block."""
    mixed = Mixed(starts=(np.arange(1001) * 1_000_000, np.arange(11) * 1000), weights=(3.0, 1.0), seed=1, window=4)
    count = 10**9
    order = mixed.epoch(0, count)
    part = order[count // 2 : count // 2 + 4 * BLOCK] % mixed.samples
    assert abs((part < 10**9).mean() - 0.75) < 0.001
    assert len(np.unique(part[part < 10**9] // 1_000_000)) <= 8
    few = part[part >= 10**9] - 10**9
    assert np.bincount(few, minlength=10_000).min() >= len(few) // 10_000 - 1, "passes follow each other"


def test_it_needs_no_torch() -> None:
    code = "import sys, twinview.data.dataset.keyed_order, twinview.data.dataset.order; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
