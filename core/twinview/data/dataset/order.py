"""The order of an epoch: a pure function of (seed, epoch).  Ranks, workers and restarts only choose which part of it to read."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.errors import DataError
from twinview.ops.seeding import seed_of

SampleIndex = tuple[int, int]  # (epoch, number): of n samples, number = index + n * how often the epoch has had this sample before


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


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; what remains is dropped, another part in each epoch.  Raises DataError where there is none."""
    if samples < global_batch:
        raise DataError(f"[run] batch_size: {global_batch} is more than the {samples} samples of the shards. Write {samples} or less.")
    return samples // global_batch


def micro_batch(global_batch: int, accumulation: int, world: int) -> int:
    """Samples of a micro-batch on each of `world` ranks.  Raises DataError where the global batch cannot be cut evenly."""
    if global_batch % (world * accumulation):
        parts = f"{world} ranks x {accumulation} accumulated micro-batches"
        raise DataError(f"[run] batch_size: {global_batch} is no multiple of {parts}. Write a multiple of {world * accumulation}.")
    return global_batch // (world * accumulation)


class EpochSampler(Protocol):
    """The order of every epoch."""

    @property
    def samples(self) -> int:
        """The number of different samples; each epoch is cut into whole global batches of them."""
        ...

    def epoch(self, epoch: int, count: int) -> NDArray[np.int64]:
        """The first `count` numbers (see `SampleIndex`) of an epoch, or more; count <= samples."""
        ...


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


def counts_of(weights: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """How often each sample is drawn, `count` in all: its share of `count` rounded down, and one more with the probability of what that leaves.

    Systematic sampling (Madow 1949): no sample is drawn more than once more, or less, than its share.  A pure function.
    """
    shares = weights / weights.sum() * count
    found = np.floor(shares).astype(np.int64)
    ends = np.cumsum(shares - found)
    ends *= (count - int(found.sum())) / ends[-1] if ends[-1] > 0 else 0.0  # a whole number, but for the rounding of sums
    place = int(np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(1)[0] >> 11) / (1 << 53)  # 0 <= place < 1
    marks = np.floor(np.minimum(ends, count - int(found.sum())) + place).astype(np.int64)
    whole: NDArray[np.int64] = found + np.diff(marks, prepend=0)
    return whole


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


def shares(weights: tuple[float, ...], count: int) -> list[int]:
    """`count` cut in proportion to the weights: whole numbers, the largest remainders rounded up, the first of equals first."""
    whole = sum(map(Fraction, weights))
    exact = [Fraction(weight) * count / whole for weight in weights]
    found = [int(share) for share in exact]
    for source in sorted(range(len(exact)), key=lambda s: found[s] - exact[s])[: count - sum(found)]:
        found[source] += 1
    return found


@attrs.frozen(kw_only=True)
class BatchSampler:
    """Which samples a rank reads when.  Micro-batch `a` of a step is one slice of the global batch, whatever the number of ranks."""

    order: EpochSampler
    global_batch: int
    accumulation: int
    rank: int
    world: int

    def __attrs_post_init__(self) -> None:
        """Raises DataError where the global batch cannot be cut evenly or the data set has none."""
        micro_batch(self.global_batch, self.accumulation, self.world)
        steps_per_epoch(self.order.samples, self.global_batch)

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch on a rank."""
        return micro_batch(self.global_batch, self.accumulation, self.world)

    def batches(self, start: int = 0, steps: int | None = None) -> Iterator[list[SampleIndex]]:
        """This rank's micro-batches from optimizer step `start` on, for `steps` steps or without end; none crosses an epoch."""
        for epoch, these, order in self.epochs(start, steps):
            for step in these:
                yield from self.micro_batches(epoch, step, order)

    def micro_batches(self, epoch: int, step: int, order: NDArray[np.int64]) -> Iterator[list[SampleIndex]]:
        """This rank's of one step of an epoch that has this order."""
        for a in range(self.accumulation):
            at = step * self.global_batch + (a * self.world + self.rank) * self.micro_batch
            yield [(epoch, int(i)) for i in order[at : at + self.micro_batch]]

    def epochs(self, start: int, steps: int | None) -> Iterator[tuple[int, range, NDArray[np.int64]]]:
        """For each epoch from optimizer step `start` on: its number, the steps of it that are read, and its order of samples."""
        length = steps_per_epoch(self.order.samples, self.global_batch)
        epoch, first = divmod(start, length)
        left = steps
        while left is None or left > 0:
            order = self.order.epoch(epoch, length * self.global_batch)
            last = length if left is None else min(length, first + left)
            yield epoch, range(first, last), order
            left = None if left is None else left - (last - first)
            epoch, first = epoch + 1, 0
