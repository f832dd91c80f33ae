"""The order of an epoch: a pure function of (seed, epoch).  Ranks, workers and restarts only choose which part of it to read.

`keyed_order` makes it for new runs, `sorted_order` for those that began with an earlier version.
"""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from typing import Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.errors import DataError

SampleIndex = tuple[int, int]  # (epoch, number): of n samples, number = index + n * which of the epoch's readings of this sample it is, from 0
Ints = NDArray[np.int64]


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; what remains is dropped, another part in each epoch.  Raises DataError where there is none."""
    if samples < global_batch:
        raise DataError(f"[run] batch_size: {global_batch} is more than the {samples} samples of the shards. Write {samples} or less.")
    return samples // global_batch


def slices(step: int, global_batch: int, accumulation: int, rank: int, world: int) -> Iterator[range]:
    """Places in an epoch of the micro-batches that a rank has in one of its steps."""
    size = micro_batch(global_batch, accumulation, world)
    for a in range(accumulation):
        at = step * global_batch + (a * world + rank) * size
        yield range(at, at + size)


def places(start: int, length: int, global_batch: int, accumulation: int, rank: int, world: int) -> Iterator[range]:
    """`slices` of every optimizer step from `start` on, without end; an epoch has `length` steps."""
    for step in count(start):
        yield from slices(step % length, global_batch, accumulation, rank, world)


def micro_batch(global_batch: int, accumulation: int, world: int) -> int:
    """Samples of a micro-batch on each of `world` ranks.  Raises DataError where the global batch cannot be cut evenly."""
    if global_batch % (world * accumulation):
        parts = f"{world} ranks x {accumulation} accumulated micro-batches"
        raise DataError(f"[run] batch_size: {global_batch} is no multiple of {parts}. Write a multiple of {world * accumulation}.")
    return global_batch // (world * accumulation)


class EpochOrder(Protocol):
    """The numbers (see `SampleIndex`) that an epoch reads, in order; worked out for the part that is asked for.  Arrays are such orders too."""

    def __getitem__(self, part: slice, /) -> Ints: ...


class EpochSampler(Protocol):
    """The order of every epoch."""

    @property
    def samples(self) -> int:
        """The number of different samples; each epoch is cut into whole global batches of them."""
        ...

    def epoch(self, epoch: int, count: int) -> EpochOrder:
        """The order of an epoch that reads `count` numbers, or more; count <= samples."""
        ...


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

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return steps_per_epoch(self.order.samples, self.global_batch)

    def batches(self, start: int = 0, steps: int | None = None) -> Iterator[list[SampleIndex]]:
        """This rank's micro-batches from optimizer step `start` on, for `steps` steps or without end; none crosses an epoch."""
        for epoch, these, order in self.epochs(start, steps):
            for step in these:
                yield from self.micro_batches(epoch, step, order)

    def micro_batches(self, epoch: int, step: int, order: EpochOrder) -> Iterator[list[SampleIndex]]:
        """This rank's of one step of an epoch that has this order."""
        for own in slices(step, self.global_batch, self.accumulation, self.rank, self.world):
            yield [(epoch, i) for i in order[own.start : own.stop].tolist()]

    def places(self, start: int) -> Iterator[range]:
        """Where the micro-batches of `batches(start)` stand in the order of their epoch, without end."""
        return places(start, self.steps, self.global_batch, self.accumulation, self.rank, self.world)

    def epochs(self, start: int, steps: int | None) -> Iterator[tuple[int, range, EpochOrder]]:
        """For each epoch from optimizer step `start` on: its number, the steps of it that are read, and its order of samples."""
        length = self.steps
        epoch, first = divmod(start, length)
        left = steps
        while left is None or left > 0:
            order = self.order.epoch(epoch, length * self.global_batch)
            last = length if left is None else min(length, first + left)
            yield epoch, range(first, last), order
            left = None if left is None else left - (last - first)
            epoch, first = epoch + 1, 0
