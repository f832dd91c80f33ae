"""Format 1 of an epoch's order, which runs of earlier versions go on with: all samples sorted by random bits, so it is made whole for every epoch.

Nothing here may change: checkpoints of these runs count on it.  New runs take `keyed_order`.
"""
from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.order import counts_of, shares
from twinview.seeds import seed_of


def epoch_order(seed: int, epoch: int, starts: NDArray[np.int64], window: int = 0) -> NDArray[np.int64]:
    """All samples, shuffled.  `starts` [shards + 1]: where each shard's samples begin.

    `window` shards, drawn at random, are shuffled together and read before the next ones (locality for slow disks); 0 shuffles all.
    The raw bits of Philox are the same in every version of numpy; `Generator.permutation` promises no such thing.
    """
    return shuffle(seed, epoch, np.arange(int(starts[-1])), starts, window)


def shuffle(seed: int, epoch: int, drawn: NDArray[np.int64], starts: NDArray[np.int64], window: int = 0) -> NDArray[np.int64]:
    """The order in which an epoch reads the samples `drawn`, each any number of times: positions in `drawn`.  See `epoch_order`."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    raw = bits.random_raw(len(drawn))
    if window == 0:
        whole: NDArray[np.int64] = np.argsort(raw, kind="stable")
        return whole
    rank = np.argsort(np.argsort(bits.random_raw(len(starts) - 1), kind="stable"))  # of each shard in this epoch
    found: NDArray[np.int64] = np.lexsort((raw, rank[np.searchsorted(starts, drawn, side="right") - 1] // window))
    return found


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """0 to n - 1, shuffled; a pure function."""
    return epoch_order(seed, epoch, np.array([0, n]))


@attrs.frozen(kw_only=True)
class Shuffled:
    """Every sample once an epoch.  `starts` [shards + 1]: where each shard's samples begin."""

    starts: NDArray[np.int64]
    seed: int
    window: int = 0

    @property
    def samples(self) -> int:
        """All."""
        return int(self.starts[-1])

    def epoch(self, epoch: int, count: int) -> NDArray[np.int64]:
        """All samples in the order of this epoch, whatever the count."""
        return epoch_order(self.seed, epoch, self.starts, self.window)

    def chosen(self, numbers: NDArray[Any]) -> Chosen:
        """The same shuffle of samples that are read as often as `numbers` say: int64 counts or float64 weights [samples]."""
        return Chosen(base=self, numbers=numbers)


@attrs.frozen(kw_only=True, eq=False)
class Chosen:
    """An epoch whose samples a part chose (`sample_weights`).  With the same number for all it is the shuffle that `Shuffled` gives."""

    base: Shuffled
    numbers: NDArray[Any]  # [samples] int64: counts; float64: weights

    @property
    def samples(self) -> int:
        """All, of which an epoch takes as many as any other epoch."""
        return self.base.samples

    def epoch(self, epoch: int, count: int) -> NDArray[np.int64]:
        """Exactly `count` numbers.  Counts are shuffled and cut to `count`; weights are turned into counts first."""
        n, seed = self.samples, self.base.seed
        counts = self.numbers if self.numbers.dtype == np.int64 else counts_of(self.numbers, count, seed_of(seed, "weights", epoch))
        drawn = np.repeat(np.arange(n), counts)
        order = drawn[shuffle(seed, epoch, drawn, self.base.starts, self.base.window)][:count]
        return order + n * earlier(order)


def earlier(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry has been in `order` before."""
    by_value = np.argsort(order, kind="stable")
    sorted_ = order[by_value]
    first = np.flatnonzero(np.r_[True, sorted_[1:] != sorted_[:-1]]) if len(order) else np.empty(0, np.int64)
    found = np.empty(len(order), np.int64)
    found[by_value] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return found


@attrs.frozen(kw_only=True)
class Mixed:
    """Each source's share in every epoch.  A source is read pass by pass, each pass a shuffle of all it has, on from where the last epoch stopped.

    So over the epochs no two samples of a source differ by more than one in how often they were read.  Where an epoch reaches into another pass
    it may have a sample again.
    """

    starts: tuple[NDArray[np.int64], ...]  # of each source's shards; samples are numbered through all sources
    weights: tuple[float, ...]
    seed: int
    window: int = 0  # shards of each source

    @property
    def samples(self) -> int:
        """Of all sources."""
        return sum(int(starts[-1]) for starts in self.starts)

    def epoch(self, epoch: int, count: int) -> NDArray[np.int64]:
        """Exactly `count` numbers: the sources take their turns in a shuffled order, and each goes on in its own."""
        counts = shares(self.weights, count)
        turns = np.repeat(np.arange(len(counts)), counts)
        turns = turns[permutation(seed_of(self.seed, "sources"), epoch, count)]
        order, first = np.empty(count, np.int64), 0
        for source, (starts, n) in enumerate(zip(self.starts, counts)):
            local, again = self._passes(source, epoch * n, (epoch + 1) * n)
            order[turns == source] = first + local + again * self.samples
            first += int(starts[-1])
        return order

    def _passes(self, source: int, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples [begin, end) of a source's endless passes, and how often each was among these before."""
        starts, seed = self.starts[source], seed_of(self.seed, "source", source)
        size = int(starts[-1])
        local, again = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        seen = np.zeros(size, np.int64)
        for at in range(begin // size, -(-end // size)):
            read = epoch_order(seed, at, starts, self.window)[max(begin - at * size, 0) : end - at * size]
            local.append(read)
            again.append(seen[read])
            seen[read] += 1
        return np.concatenate(local), np.concatenate(again)
