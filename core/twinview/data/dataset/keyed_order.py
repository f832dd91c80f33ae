"""Format 2 of an epoch's order: keyed permutations, so any part of an epoch is worked out by itself, at once and in the memory of that part.

What an epoch holds in memory grows with the shards (and with the sources of a mixture), never with the samples.
"""
from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset.order import counts_of, shares
from twinview.data.dataset.permutation import keys_of, permute, unpermute
from twinview.seeds import seed_of

Ints = NDArray[np.int64]
BLOCK = 1 << 14  # samples of a mixture among which its sources take their turns
PASSES = 4  # of a source whose orders are kept


class Spans(NamedTuple):
    """When an epoch reads its shards."""

    shards: Ints  # [s] in the order of their first use, several times where they are read again
    first: Ints  # [s] positions in the epoch
    last: Ints  # [s]


@attrs.frozen(kw_only=True, eq=False)
class Windows:
    """Items 0..n-1 of several shards in the order of one epoch: windows of shards drawn at random, one after another, each shuffled as a whole."""

    starts: Ints  # [shards + 1]: where each shard's items begin
    seed: int
    epoch: int
    window: int = 0  # shards; 0: all of them

    @cached_property
    def _read(self) -> Ints:
        """[shards] in the order in which they are read."""
        shards = len(self.starts) - 1
        numbers = np.arange(shards)
        return permute(numbers, shards, seed_of(self.seed, "shards", self.epoch)) if 0 < self.window < shards else numbers

    @cached_property
    def _places(self) -> Ints:
        """[shards] when each shard is read: the inverse of `_read`."""
        found = np.empty_like(self._read)
        found[self._read] = np.arange(len(found))
        return found

    @cached_property
    def _before(self) -> Ints:
        """[shards + 1] items in the shards that are read before each."""
        return np.concatenate([[0], np.cumsum(np.diff(self.starts)[self._read])])

    @cached_property
    def _bounds(self) -> Ints:
        """[windows + 1]: where each window begins in the epoch."""
        step = self.window or len(self._read)
        return np.append(self._before[: -1 : step], self._before[-1])

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        return keys_of(seed_of(self.seed, "samples", self.epoch), np.arange(len(self._bounds) - 1))

    def __getitem__(self, part: slice) -> Ints:
        return self.at(np.arange(*part.indices(int(self.starts[-1]))))

    def at(self, positions: Ints) -> Ints:
        """The items at these positions of the epoch."""
        first, size, key = self._window(positions)
        laid = first + permute(positions - first, size, key)  # among all items, in the order in which their shards are read
        read = np.searchsorted(self._before, laid, side="right") - 1
        found: Ints = self.starts[self._read[read]] + laid - self._before[read]
        return found

    def positions(self, items: Ints) -> Ints:
        """Where in the epoch these items are read: the inverse of `at`."""
        shard = np.searchsorted(self.starts, items, side="right") - 1
        laid = self._before[self._places[shard]] + items - self.starts[shard]
        first, size, key = self._window(laid)
        found: Ints = first + unpermute(laid - first, size, key)
        return found

    def _window(self, places: Ints) -> tuple[Ints, Ints, NDArray[np.uint64]]:
        """Start, length and key of the window that each place lies in."""
        if len(self._keys) == 1:
            return self._bounds[0], self._bounds[1], self._keys[0]
        window = np.searchsorted(self._bounds, places, side="right") - 1
        return self._bounds[window], self._bounds[window + 1] - self._bounds[window], self._keys[window]

    def spans(self) -> Spans:
        """When each shard that has items is read: as long as its window."""
        window = np.arange(len(self._read)) // (self.window or len(self._read))
        some = np.diff(self._before) > 0
        return Spans(self._read[some], self._bounds[window][some], self._bounds[window + 1][some] - 1)


@attrs.frozen(kw_only=True, eq=False)
class Shuffled:
    """Every sample once an epoch.  `starts` [shards + 1]: where each shard's samples begin."""

    starts: Ints
    seed: int
    window: int = 0

    @property
    def samples(self) -> int:
        """All."""
        return int(self.starts[-1])

    def epoch(self, epoch: int, count: int) -> Windows:
        """All samples in the order of this epoch, whatever the count."""
        return Windows(starts=self.starts, seed=self.seed, epoch=epoch, window=self.window)

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

    def epoch(self, epoch: int, count: int) -> ChosenEpoch:
        """Counts are shuffled as they are, and read as far as `count`; weights are turned into `count` samples first."""
        seed = self.base.seed
        counts = self.numbers if self.numbers.dtype == np.int64 else counts_of(self.numbers, count, seed_of(seed, "weights", epoch))
        ends = np.concatenate([[0], np.cumsum(counts)])
        return ChosenEpoch(ends=ends, order=Windows(starts=ends[self.base.starts], seed=seed, epoch=epoch, window=self.base.window))


@attrs.frozen(kw_only=True, eq=False)
class ChosenEpoch:
    """The order of one epoch of `Chosen`."""

    ends: Ints  # [samples + 1] readings of all samples before each
    order: Windows  # of the readings

    def __getitem__(self, part: slice) -> Ints:
        readings = self.order[part]
        sample = np.searchsorted(self.ends, readings, side="right") - 1
        found: Ints = sample + (len(self.ends) - 1) * (readings - self.ends[sample])
        return found

    def spans(self) -> Spans:
        """When each shard that has something to be read is read."""
        return self.order.spans()


@attrs.frozen(kw_only=True, eq=False)
class Mixed:
    """Each source's share in every epoch.  A source is read pass by pass, each pass a shuffle of all it has, on from where the last epoch stopped.

    So over the epochs no two samples of a source differ by more than one in how often they were read.  Where an epoch reaches into another pass
    it may have a sample again.
    """

    starts: tuple[Ints, ...]  # of each source's shards; samples are numbered through all sources
    weights: tuple[float, ...]
    seed: int
    window: int = 0  # shards of each source

    @property
    def samples(self) -> int:
        """Of all sources."""
        return sum(int(starts[-1]) for starts in self.starts)

    def epoch(self, epoch: int, count: int) -> MixedEpoch:
        """Exactly `count` numbers."""
        return MixedEpoch(self, epoch, np.array(shares(self.weights, count)))


class MixedEpoch:
    """The order of one epoch of `Mixed`.  The sources take turns: each block of the epoch has of each source what is due by its end, shuffled."""

    def __init__(self, mixed: Mixed, epoch: int, counts: Ints) -> None:
        """`counts` [sources]: samples of each in the epoch."""
        self.mixed, self.epoch, self.counts = mixed, epoch, counts
        self._turns = lru_cache(2)(self._turns_of)
        self._pass = lru_cache(PASSES * len(counts))(self._pass_of)

    @cached_property
    def _due(self) -> Ints:
        """[blocks + 1, sources] samples of each source before each block: its share of the epoch so far, rounded."""
        blocks = max(1, -(-int(self.counts.sum()) // BLOCK))
        return (2 * np.arange(blocks + 1)[:, None] * self.counts + blocks) // (2 * blocks)

    @cached_property
    def _bounds(self) -> Ints:
        """[blocks + 1]: where each block begins in the epoch."""
        found: Ints = self._due.sum(1)
        return found

    def __getitem__(self, part: slice) -> Ints:
        begin, end, _ = part.indices(int(self.counts.sum()))
        found = [np.empty(0, np.int64)]
        while begin < end:
            block = int(np.searchsorted(self._bounds, begin, side="right")) - 1
            first, stop = int(self._bounds[block]), min(end, int(self._bounds[block + 1]))
            sources, turns = self._turns(block)
            found.append(self._numbers(sources[begin - first : stop - first], turns[begin - first : stop - first]))
            begin = stop
        return np.concatenate(found)

    def _turns_of(self, block: int) -> tuple[Ints, Ints]:
        """For each position of a block: which source has its turn, and which of the epoch's turns of that source it is."""
        each = np.diff(self._due, axis=0)[block]
        key = keys_of(seed_of(self.mixed.seed, "sources", self.epoch), np.array(block))
        sources = np.repeat(np.arange(len(each)), each)[permute(np.arange(int(each.sum())), int(each.sum()), key)]
        turns = np.empty(len(sources), np.int64)
        turns[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(n) + due for n, due in zip(each, self._due[block])])
        return sources, turns

    def _numbers(self, sources: Ints, turns: Ints) -> Ints:
        found, first = np.empty(len(sources), np.int64), 0
        for source, starts in enumerate(self.mixed.starts):
            of = sources == source
            local, again = self._read(source, turns[of])
            found[of] = first + local + again * self.mixed.samples
            first += int(starts[-1])
        return found

    def _read(self, source: int, turns: Ints) -> tuple[Ints, Ints]:
        """What a source gives at these turns of the epoch, and how often the epoch has had that before."""
        size, before = int(self.mixed.starts[source][-1]), self.epoch * int(self.counts[source])
        passes, positions = np.divmod(turns + before, size)
        begun, since = divmod(before, size)  # the epoch goes on within this pass, from here
        local, again = np.empty(len(turns), np.int64), passes - begun
        for one in np.unique(passes).tolist():
            of = passes == one
            local[of] = self._pass(source, one).at(positions[of])
            if one > begun:  # the first pass had given some of them to the epoch before
                again[of] -= self._pass(source, begun).positions(local[of]) < since
        return local, again

    def _pass_of(self, source: int, number: int) -> Windows:
        mixed = self.mixed
        return Windows(starts=mixed.starts[source], seed=seed_of(mixed.seed, "source", source), epoch=number, window=mixed.window)

    def spans(self) -> Spans:
        """When each shard of each source is read, about: turns are taken to be evenly spread within a block."""
        found, first = list[Ints](), 0
        for source, starts in enumerate(self.mixed.starts):
            size, count = int(starts[-1]), int(self.counts[source])
            before = self.epoch * count
            for one in range(before // size, -(-(before + count) // size)):
                shards, begins, ends = self._pass(source, one).spans()
                begins, ends = begins + one * size - before, ends + one * size - before
                some = (ends >= 0) & (begins < count)
                places = [np.interp(np.clip(turns[some], 0, count - 1), self._due[:, source], self._bounds) for turns in (begins, ends)]
                found.append(np.stack([first + shards[some], *(np.floor(place).astype(np.int64) for place in places)]))
            first += len(starts) - 1
        shards, begins, ends = np.concatenate(found, 1)
        order = np.argsort(begins, kind="stable")
        return Spans(shards[order], begins[order], ends[order])
