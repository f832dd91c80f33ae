"""While the shards of one window are read, those of the next are fetched.

A batch goes to its worker with the shards that come into use around it.  Workers of all ranks of a machine share the cache: each fetches, in a thread
of its own, the first of these that is neither there nor being fetched by another.
"""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.base import Samples
from twinview.data.dataset.keyed_order import ChosenEpoch, MixedEpoch, Windows
from twinview.data.dataset.order import BatchSampler, EpochOrder, SampleIndex
from twinview.data.remote.shard import RemoteShard, remote_of
from twinview.errors import DataError

T = TypeVar("T")
Ints = NDArray[np.int64]
COUNTED = 1 << 20  # samples of an epoch of which the shards are counted one by one


class PrefetchBatch(NamedTuple):
    """One batch's sample indices, and the numbers of the shards to prefetch."""

    places: list[SampleIndex]
    shards: Sequence[int]


def prefetch_batches(plan: BatchSampler, samples: Samples, window: int, start: int, steps: int | None) -> Iterator[PrefetchBatch]:
    """`plan.batches`, each with the shards that are in use, and the next `window` that will be in this epoch."""
    for epoch, these, order in plan.epochs(start, steps):
        used, first, last = spans(order, samples, plan.steps * plan.global_batch)
        for step in these:
            begun = int(np.searchsorted(first, (step + 1) * plan.global_batch))
            shards = [*used[:begun][last[:begun] >= step * plan.global_batch].tolist(), *used[begun : begun + window].tolist()]
            for places in plan.micro_batches(epoch, step, order):
                yield PrefetchBatch(places, shards)


def spans(order: EpochOrder, samples: Samples, count: int) -> tuple[Ints, Ints, Ints]:
    """`uses` of an epoch of `count` samples: counted where it is small, or made whole anyway; else as the order says them, in windows."""
    if isinstance(order, (Windows, ChosenEpoch, MixedEpoch)) and count > COUNTED:
        return order.spans()
    return uses(samples.shards_of(order[:count] % len(samples)))


def uses(shards: Ints) -> tuple[Ints, Ints, Ints]:
    """[n] the shard of each sample of an epoch -> [s] shards in the order of their first use, [s] positions of their first use and of their last."""
    used, first = np.unique(shards, return_index=True)
    last = len(shards) - 1 - np.unique(shards[::-1], return_index=True)[1]
    order = np.argsort(first)
    return used[order], first[order], last[order]


class ShardPrefetcher(Generic[T]):
    """Makes batches, and meanwhile fetches."""

    def __init__(self, make: Callable[[list[SampleIndex]], T], shards: Sequence[object]) -> None:
        self.make, self.shards = make, shards
        self._wanted: deque[RemoteShard] = deque()
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wanted": deque(), "_thread": None}

    def __call__(self, wish: PrefetchBatch) -> T:
        """The batch; its wish replaces those before."""
        self._wanted = deque(shard for shard in remote_of(self.shards[i] for i in wish.shards) if not shard.cache.touch(shard.name))
        if self._wanted and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch, daemon=True)  # ends with the process, in the middle of a shard too
            self._thread.start()
        return self.make(wish.places)

    def _fetch(self) -> None:
        with suppress(IndexError, DataError):  # nothing left; or a fault, which whoever reads the shard will meet, and say
            while True:
                self._wanted.popleft().fetch(wait=False)
