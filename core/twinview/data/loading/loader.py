"""Batches of a rank, made by worker processes that live as long as they are wanted; how many there are changes nothing but the speed."""
from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from twinview.assembly import Assembly
from twinview.data.dataset.base import DataSource
from twinview.data.dataset.order import BatchSampler, EpochSampler
from twinview.data.dataset.orders import Shuffled
from twinview.data.dataset.read import BadSample
from twinview.data.dataset.stream import Stream
from twinview.data.formats import decode
from twinview.data.loading.prefetch import ShardPrefetcher, prefetch_batches
from twinview.data.loading.stream_batches import StreamBatches
from twinview.data.loading.transfer import SHARED, out_of_memory, pack, unpack
from twinview.data.loading.views import BadSamples, ViewDataset
from twinview.data.remote.shard import remote_of
from twinview.errors import DataError, RecipeError, TwinviewError
from twinview.machine import TIMEOUT, timeout
from twinview.recipe import Recipe
from twinview.terminal import say
from twinview.values import Batch, Dims

P = TypeVar("P")
T = TypeVar("T")
LOOK = 5.0  # seconds between two looks at workers that are waited for
TALK = 60.0  # seconds of waiting after which a line says what they do
STATES = {"T": "stopped (SIGCONT lets it go on)", "D": "waiting for a disk or a file server", "S": "waiting", "Z": "dead"}  # of Linux


def training_batches(
    recipe: Recipe,
    dims: Dims,
    shards: DataSource,
    *,
    rank: int,
    world: int,
    start: int = 0,
    steps: int | None = None,
    bad: BadSamples | None = None,
    assembly: Assembly | None = None,
    numbers: NDArray[Any] | None = None,
) -> Generator[Batch]:
    """This rank's micro-batches, `run.accumulation` for each optimizer step, from optimizer step `start` on, for `steps` or without end.

    Close it to end its workers.  `bad` counts the samples that do not decode, for a caller that wants to know them; `assembly`: the recipe's parts,
    where they are made already.  `numbers`: counts or weights by which the samples of one epoch are chosen (`order.Chosen`); `steps` then stay in
    it.  Raises DataError: at once where the batch size does not fit, on the way where too many samples do not decode.
    """
    pin = recipe.run.device != "cpu" and torch.cuda.is_available()
    if isinstance(shards, Stream):
        a = recipe.run.accumulation
        which = count(start * a) if steps is None else range(start * a, (start + steps) * a)
        stream = StreamBatches(recipe, dims, shards, rank, world, assembly)
        return _counted(load(stream, which, recipe.data.workers, pin=pin), recipe, bad, stream.places(start))
    samples = shards.numbered()
    plan = BatchSampler(
        order=chosen(samples.order(recipe.run.seed, recipe.data.window, recipe.data.order), numbers),
        global_batch=recipe.run.batch_size,
        accumulation=recipe.run.accumulation,
        rank=rank,
        world=world,
    )
    make, window = ViewDataset(recipe, dims, samples, assembly).collate, recipe.data.window * max(1, len(recipe.data.source))
    if window and remote_of(samples.paths):
        work = prefetch_batches(plan, samples, window, start, steps)
        return _counted(load(ShardPrefetcher(make, samples.paths), work, recipe.data.workers, pin=pin), recipe, bad, plan.places(start))
    return _counted(load(make, plan.batches(start, steps), recipe.data.workers, pin=pin), recipe, bad, plan.places(start))


def chosen(order: EpochSampler, numbers: NDArray[Any] | None) -> EpochSampler:
    """The order of samples that a part chose by numbers; of weighted sources there is none (`check_choice`)."""
    if numbers is None:
        return order
    assert isinstance(order, Shuffled)
    return order.chosen(numbers)


def check_choice(recipe: Recipe, place: str) -> None:
    """Raises RecipeError where something else than the part at `place` chooses samples."""
    if recipe.data.streaming:
        raise RecipeError(f"{place}: chooses samples, and [data] streaming reads them as they lie. Leave streaming out.")
    if any(source.weight is not None for source in recipe.data.source):
        raise RecipeError(f"{place}: chooses samples, and so do the weights of [[data.source]]. Leave the weights out.")


def _counted(
    loaded: Generator[tuple[Batch, tuple[BadSample, ...]]], recipe: Recipe, bad: BadSamples | None, places: Iterator[range]
) -> Generator[Batch]:
    seen = BadSamples(recipe.data.bad_samples) if bad is None else bad
    try:
        for (batch, failed), own in zip(loaded, places):
            seen.add(failed)
            yield batch._replace(places=torch.arange(own.start, own.stop))
    finally:
        loaded.close()


def load(make: Callable[[P], T], places: Iterable[P], workers: int, *, pin: bool = False) -> Generator[T]:
    """`make(places)` for each batch of places, in order, by worker processes (0: in this one).

    A TwinviewError of a worker comes out as it was raised; the death of one, and a batch that does not come within TWINVIEW_TIMEOUT seconds, become a
    DataError.  torch's global generator is left alone.
    """
    if workers:
        decode.warm_up()
    loader = DataLoader(
        _Made(make, _same if workers == 0 else pack),
        batch_size=None,  # an entry of the data set is a batch already
        sampler=cast(Any, places),
        num_workers=workers,
        collate_fn=_same,
        pin_memory=pin,
        timeout=LOOK if workers else 0,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator().manual_seed(0),
    )
    with _own_sigchld():
        entries = iter(loader)
    try:
        while True:
            try:
                sent = _next(entries) if workers else next(entries)
            except StopIteration:
                return
            entry = unpack(sent) if workers else sent
            if isinstance(entry, TwinviewError):
                raise entry
            yield entry
    finally:
        if workers:
            _end(cast(Any, entries), pin)


def _end(entries: Any, pin: bool) -> None:
    """End the workers; left to `del`, they live as long as a traceback that anyone keeps.  One that hangs is killed: it ignores SIGTERM."""
    hang = [worker for worker in entries._workers if _state(worker.pid) in ("T", "D")]
    if not pin:  # with it, a thread of torch's waits for a word that goes through a lock which a killed worker may hold
        for worker in hang:
            worker.kill()
    entries._shutdown_workers()
    for worker in entries._workers:
        if worker.is_alive():
            worker.kill()
            worker.join()


def _next(entries: Any) -> Any:
    """The next entry.  Workers are looked at every LOOK seconds, and are talked of after TALK seconds of waiting.  Raises DataError."""
    began, said, limit = time.monotonic(), 0.0, timeout()
    while True:
        try:
            return next(entries)
        except (OSError, RuntimeError) as e:
            if str(e).startswith("DataLoader worker"):
                raise DataError(f"[data] workers: one ended unexpectedly ({e}). Where memory is short, write fewer.") from None
            if fault := out_of_memory(e):
                raise fault from None
            if not str(e).startswith("DataLoader timed out"):
                raise
        waited = time.monotonic() - began
        if waited > limit:
            instead = f"Where this may take longer, set {TIMEOUT}; data.workers=0 reads in the training process"
            raise DataError(f"[data] workers: no batch for {waited:.0f} s: {_states(entries)}. {instead}.")
        if waited - said > TALK:
            said = waited
            say(f"data: waiting for a batch for {waited:.0f} s: {_states(entries)}")


def _states(entries: Any) -> str:
    """What each worker is doing, as the system says."""
    said = [f"worker {worker.pid} is {STATES.get(_state(worker.pid), 'at work')}" for worker in entries._workers]
    return ", ".join(said) + (f", {SHARED} is full" if _is_full() else "")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _is_full() -> bool:
    try:
        return shutil.disk_usage(SHARED).free < 1 << 20
    except OSError:
        return False


@contextmanager
def _own_sigchld() -> Iterator[None]:
    """torch's handler of SIGCHLD would raise wherever the training is when a worker dies; `_next` asks for the dead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


class _Made(Dataset[Any], Generic[P, T]):
    """What a worker runs.  An error of the input is an entry like another: raised there, it would come out as a traceback in a traceback."""

    def __init__(self, make: Callable[[P], T], send: Callable[[T | TwinviewError], Any]) -> None:
        self.make, self.send = make, send

    def __getitem__(self, places: P) -> Any:
        try:
            return self.send(self.make(places))
        except TwinviewError as e:
            return self.send(e)


def _outlive_signals(_: int) -> None:
    """A scheduler, and Ctrl-C, tell every process to end; the one that trains saves first, and ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _same(entry: T) -> T:
    return entry
