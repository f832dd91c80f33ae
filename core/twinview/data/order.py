"""The order of an epoch: a pure function of (seed, epoch).  Ranks, workers and restarts only choose which part of it to read."""
from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
from numpy.typing import NDArray

from twinview.errors import DataError

Place = tuple[int, int]  # (epoch, index of a sample)


def epoch_order(seed: int, epoch: int, starts: NDArray[np.int64], window: int = 0) -> NDArray[np.int64]:
    """All samples, shuffled.  `starts` [shards + 1]: where each shard's samples begin.

    `window` shards, drawn at random, are shuffled together and read before the next ones (locality for slow disks); 0 shuffles all.
    The raw bits of Philox are the same in every version of numpy; `Generator.permutation` promises no such thing.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    raw = bits.random_raw(int(starts[-1]))
    if window == 0:
        return np.argsort(raw, kind="stable")
    sizes = np.diff(starts)
    rank = np.argsort(np.argsort(bits.random_raw(len(sizes)), kind="stable"))  # of each shard in this epoch
    return np.lexsort((raw, np.repeat(rank // window, sizes)))


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; what remains is dropped, another part in each epoch.  Raises DataError where there is none."""
    if samples < global_batch:
        raise DataError(f"[run] batch_size: {global_batch} is more than the {samples} samples of the shards. Write {samples} or less.")
    return samples // global_batch


@attrs.frozen(kw_only=True)
class Plan:
    """Which samples a rank reads when.  Micro-batch `a` of a step is one slice of the global batch, whatever the number of ranks."""

    starts: NDArray[np.int64]
    seed: int
    window: int
    global_batch: int
    accumulation: int
    rank: int
    world: int

    def __attrs_post_init__(self) -> None:
        """Raises DataError where the global batch cannot be cut evenly or the data set has none."""
        if self.global_batch % (self.world * self.accumulation):
            parts = f"{self.world} ranks x {self.accumulation} accumulated micro-batches"
            raise DataError(f"[run] batch_size: {self.global_batch} is no multiple of {parts}. Write a multiple of {self.world * self.accumulation}.")
        steps_per_epoch(int(self.starts[-1]), self.global_batch)

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch on a rank."""
        return self.global_batch // (self.world * self.accumulation)

    def batches(self, start: int = 0, steps: int | None = None) -> Iterator[list[Place]]:
        """This rank's micro-batches from optimizer step `start` on, for `steps` steps or without end; none crosses an epoch."""
        length = steps_per_epoch(int(self.starts[-1]), self.global_batch)
        epoch, first = divmod(start, length)
        left = steps
        while left is None or left > 0:
            order = epoch_order(self.seed, epoch, self.starts, self.window)
            last = length if left is None else min(length, first + left)
            for step in range(first, last):
                for a in range(self.accumulation):
                    at = step * self.global_batch + (a * self.world + self.rank) * self.micro_batch
                    yield [(epoch, int(i)) for i in order[at : at + self.micro_batch]]
            left = None if left is None else left - (last - first)
            epoch, first = epoch + 1, 0
