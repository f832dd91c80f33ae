"""Batches of a rank, made by worker processes that live as long as they are wanted; how many there are changes nothing but the speed."""
from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from twinview.assembly import Assembly
from twinview.data.dataset.base import Samples
from twinview.data.dataset.order import BatchSampler
from twinview.data.dataset.read import BadSample
from twinview.data.dataset.stream import Stream
from twinview.data.loading.prefetch import ShardPrefetcher, prefetch_batches
from twinview.data.loading.stream_batches import StreamBatches
from twinview.data.loading.transfer import pack, unpack
from twinview.data.loading.views import BadSamples, ViewDataset
from twinview.data.remote.shard import RemoteShard
from twinview.errors import DataError, TwinviewError
from twinview.recipe import Recipe
from twinview.values import Batch, Dims

P = TypeVar("P")
T = TypeVar("T")


def training_batches(
    recipe: Recipe, dims: Dims, shards: Samples, *, rank: int, world: int, start: int = 0, steps: int | None = None, bad: BadSamples | None = None,
    assembly: Assembly | None = None,
) -> Generator[Batch]:
    """This rank's micro-batches, `run.accumulation` for each optimizer step, from optimizer step `start` on, for `steps` or without end.

    Close it to end its workers.  `bad` counts the samples that do not decode, for a caller that wants to know them; `assembly`: the recipe's parts,
    where they are made already.  Raises DataError: at once where the batch size does not fit, on the way where too many samples do not decode.
    """
    pin = recipe.run.device != "cpu" and torch.cuda.is_available()
    if isinstance(shards, Stream):
        a = recipe.run.accumulation
        numbers = count(start * a) if steps is None else range(start * a, (start + steps) * a)
        return _counted(load(StreamBatches(recipe, dims, shards, rank, world, assembly), numbers, recipe.data.workers, pin=pin), recipe, bad)
    plan = BatchSampler(
        order=shards.order(recipe.run.seed, recipe.data.window),
        global_batch=recipe.run.batch_size,
        accumulation=recipe.run.accumulation,
        rank=rank,
        world=world,
    )
    make, window = ViewDataset(recipe, dims, shards, assembly).collate, recipe.data.window * max(1, len(recipe.data.source))
    if window and any(isinstance(path, RemoteShard) for path in shards.paths):
        work = prefetch_batches(plan, shards, window, start, steps)
        return _counted(load(ShardPrefetcher(make, shards.paths), work, recipe.data.workers, pin=pin), recipe, bad)
    return _counted(load(make, plan.batches(start, steps), recipe.data.workers, pin=pin), recipe, bad)


def _counted(loaded: Generator[tuple[Batch, tuple[BadSample, ...]]], recipe: Recipe, bad: BadSamples | None) -> Generator[Batch]:
    seen = BadSamples(recipe.data.bad_samples) if bad is None else bad
    try:
        for batch, failed in loaded:
            seen.add(failed)
            yield batch
    finally:
        loaded.close()


def load(make: Callable[[P], T], places: Iterable[P], workers: int, *, pin: bool = False) -> Generator[T]:
    """`make(places)` for each batch of places, in order, by worker processes (0: in this one).

    A TwinviewError of a worker comes out as it was raised; the death of one becomes a DataError.  torch's global generator is left alone.
    """
    loader = DataLoader(
        _Made(make, _same if workers == 0 else pack),
        batch_size=None,  # an entry of the data set is a batch already
        sampler=cast(Any, places),
        num_workers=workers,
        collate_fn=_same,
        pin_memory=pin,
        worker_init_fn=_outlive_sigterm,
        generator=torch.Generator().manual_seed(0),
    )
    entries = iter(loader)
    try:
        for sent in entries:
            entry = unpack(sent) if workers else sent
            if isinstance(entry, TwinviewError):
                raise entry
            yield entry
    except RuntimeError as e:
        if str(e).startswith("DataLoader worker"):
            raise DataError(f"[data] workers: one ended unexpectedly ({e}). Where memory is short, write fewer.") from None
        raise
    finally:
        if workers:
            cast(Any, entries)._shutdown_workers()  # joins them; left to `del`, they live as long as a traceback that anyone keeps


class _Made(Dataset[Any], Generic[P, T]):
    """What a worker runs.  An error of the input is an entry like another: raised there, it would come out as a traceback in a traceback."""

    def __init__(self, make: Callable[[P], T], send: Callable[[T | TwinviewError], Any]) -> None:
        self.make, self.send = make, send

    def __getitem__(self, places: P) -> Any:
        try:
            return self.send(self.make(places))
        except TwinviewError as e:
            return self.send(e)


def _outlive_sigterm(_: int) -> None:
    """A scheduler tells every process to end; the one that trains saves first, and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _same(entry: T) -> T:
    return entry
