"""Batches of a rank out of a stream: which samples they hold is a function of (seed, epoch, rank, ranks, workers) and of the shards.

The shards of an epoch are shuffled before ranks and workers take their share of them.  Each worker reads its own from end to end through a reservoir,
and from the start again where an epoch wants more of it.  Every rank makes the same number of batches, whatever its shards hold.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, TypeVar

import numpy as np

from twinview.assembly import Assembly
from twinview.data.dataset.base import ForwardSamples
from twinview.data.dataset.in_memory import BufferedSample, InMemorySamples
from twinview.data.dataset.order import micro_batch, places, steps_per_epoch
from twinview.data.dataset.read import BadSample
from twinview.data.dataset.sorted_order import permutation
from twinview.data.loading.views import ViewDataset
from twinview.data.threads import read_ahead
from twinview.errors import DataError
from twinview.recipe import Recipe
from twinview.seeds import seed_of
from twinview.values import Batch, Dims

T = TypeVar("T")

READ_AHEAD = 64  # samples
SPARE = 16  # samples before a batch that may stand in for one of it


class Numbered(NamedTuple):
    """A sample of a stream; its number counts how often the epoch had it before, as `order.SampleIndex` says."""

    number: int
    held: BufferedSample


class StreamBatches:
    """Batches by number: the n-th micro-batch of this rank in the run.  A worker process keeps its place, and asked for another it reads up to it."""

    def __init__(self, recipe: Recipe, dims: Dims, stream: ForwardSamples, rank: int, world: int, assembly: Assembly | None = None) -> None:
        """`assembly`: the recipe's parts, where they are made already.

        Raises DataError where the batch size does not fit, or there are fewer shards than workers.
        """
        run = recipe.run
        self.recipe, self.dims, self.stream, self.rank = recipe, dims, stream, rank
        self.workers = max(1, recipe.data.workers)
        self.consumers = world * self.workers
        self.size = micro_batch(run.batch_size, run.accumulation, world)
        self.length = steps_per_epoch(len(stream), run.batch_size) * run.accumulation
        self._span = int(stream.starts[-1])  # beyond all ids
        if len(stream.paths) < self.consumers:
            readers = f"{world} rank{'s' * (world > 1)} x {self.workers} worker{'s' * (self.workers > 1)}"
            raise DataError(f"[data] streaming: {readers} want a shard each, and there are {len(stream.paths)}. Write fewer workers, or more shards.")
        self._assembly = assembly
        self._forget()

    def _forget(self) -> None:
        self._views: ViewDataset | None = None
        self._place: tuple[int, int, int] | None = None  # epoch, consumer, batch of it that comes next
        self._source: Iterator[Numbered] = iter(())
        self._recent: deque[Numbered] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")} | {"_span": self._span}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._assembly = None
        self._forget()

    def __call__(self, number: int) -> tuple[Batch, tuple[BadSample, ...]]:
        """The batch, and the samples in it that others stand in for.  Raises DataError."""
        epoch, n = divmod(number, self.length)
        consumer, at = self.rank * self.workers + n % self.workers, n // self.workers
        if self._place != (epoch, consumer, at):
            self._source, self._recent = self._epoch(epoch, consumer), deque(maxlen=self.size + SPARE)
            for _ in range(at * self.size):
                self._recent.append(next(self._source))
        self._place = None  # where what follows fails
        for _ in range(self.size):
            self._recent.append(next(self._source))
        self._place = (epoch, consumer, at + 1)
        recent = list(self._recent)
        if self._views is None:
            self._views = ViewDataset(self.recipe, self.dims, InMemorySamples({}, self._span), self._assembly)
        self._views.shards = InMemorySamples({one.number % self._span: one.held for one in recent}, self._span)
        return self._views.collate([(epoch, one.number) for one in recent[-self.size :]])

    def places(self, start: int) -> Iterator[range]:
        """Numbers in their epoch of what this rank's micro-batches read, from optimizer step `start` on."""
        run = self.recipe.run
        return places(start, self.length // run.accumulation, run.batch_size, run.accumulation, self.rank, self.consumers // self.workers)

    def _epoch(self, epoch: int, consumer: int) -> Iterator[Numbered]:
        """The samples of a consumer, pass after pass."""
        shards = permutation(seed_of(self.recipe.run.seed, "stream"), epoch, len(self.stream.paths)).tolist()[consumer :: self.consumers]
        for again in count():
            bits = np.random.Philox(key=np.array([seed_of(self.recipe.run.seed, "reservoir", consumer, again), epoch], np.uint64))
            yield from shuffled(read_ahead(self._pass(shards, again), READ_AHEAD), self.recipe.data.buffer, bits)

    def _pass(self, shards: list[int], again: int) -> Generator[Numbered]:
        for shard in shards:
            first = int(self.stream.starts[shard]) + again * self._span
            for local, sample in enumerate(self.stream.read_shard(shard)):
                yield Numbered(first + local, BufferedSample(sample, self.stream.paths[shard]))


def shuffled(items: Iterable[T], size: int, bits: np.random.Philox) -> Iterator[T]:
    """Reservoir shuffle: all items, each drawn at random from a buffer of `size`.

    Yields from a tenth of the buffer's size on; until the buffer is full, it grows by one item for every two that arrive.
    """
    held: list[T] = []
    for n, item in enumerate(items):
        held.append(item)
        if len(held) > size or (n % 2 and len(held) > size // 10):
            at = int(bits.random_raw()) % len(held)
            held[at], held[-1] = held[-1], held[at]
            yield held.pop()
    for at in np.argsort(bits.random_raw(len(held)), kind="stable").tolist():
        yield held[at]
