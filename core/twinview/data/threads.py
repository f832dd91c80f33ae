"""Work in threads: in order, several at once, or ahead of its use."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from queue import Full, Queue
from typing import TypeVar, cast

from twinview.progress import progress

AHEAD = 4  # samples that are prepared ahead of the one being written, for each worker

A = TypeVar("A")
B = TypeVar("B")


def in_order(work: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """`work` of each item, by threads (files, codecs and tensors leave the interpreter's lock), in the items' order and only a few ahead."""
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque[Future[B]]()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


THREADS = 8  # questions to servers, and downloads, under way at once


def in_threads(work: Callable[[A], B], items: Sequence[A], what: str) -> list[B]:
    """`work` of each, several at once.  Raises what the first that fails raises, and begins no others then.

    Nor does it wait for those under way, maybe for minutes: its threads end with the process, and `Cache.sweep` removes what they leave of a file.
    """
    futures = [Future[B]() for _ in items]
    todo = deque(zip(futures, items))

    def run() -> None:
        while todo:
            with suppress(IndexError):  # another thread took the last
                future, item = todo.popleft()
                try:
                    future.set_result(work(item))
                except BaseException as e:  # comes out below
                    future.set_exception(e)

    for _ in range(min(THREADS, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        return [future.result() for future in progress(futures, len(futures), what, "shards")]
    finally:
        todo.clear()

T = TypeVar("T")


def read_ahead(items: Generator[T], most: int) -> Iterator[T]:
    """The same items, up to `most` of them read ahead by a thread while others are used.  What reading raises comes out here."""
    waiting: Queue[tuple[T | None, BaseException | None]] = Queue(most)
    ended = threading.Event()

    def put(item: T | None, fault: BaseException | None = None) -> None:
        while not ended.is_set():
            with suppress(Full):
                waiting.put((item, fault), timeout=0.1)
                return

    def read() -> None:
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if ended.is_set():
                        return
            put(None, StopIteration())
        except BaseException as e:
            put(None, e)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            item, fault = waiting.get()
            if isinstance(fault, StopIteration):
                return
            if fault is not None:
                raise fault
            yield cast(T, item)
    finally:
        ended.set()
