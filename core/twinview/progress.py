"""Progress of long work: a bar on a terminal, plain lines in a log."""
from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from twinview import terminal
from twinview.terminal import say

T = TypeVar("T")
NOTEBOOK = "ipykernel"  # the module that runs a notebook's code
EVERY = 10.0  # seconds between two lines of a log
SHARE = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"  # of a run that is measured in hours


DELAY = 1.0  # seconds before which a bar is not worth its place


def shows_bars() -> bool:
    """Whether stderr is a terminal, or this process is a notebook's."""
    return sys.stderr.isatty() or NOTEBOOK in sys.modules


def _tqdm() -> Any:
    """tqdm's bar; in a notebook the one that is drawn there, where ipywidgets are installed."""
    if NOTEBOOK not in sys.modules:
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing ipywidgets: bars are then plain text
        from tqdm.auto import tqdm as of_notebooks
    return of_notebooks


def progress(items: Iterable[T], total: int, what: str, unit: str, *, leave: bool = True) -> Iterator[T]:
    """The same items, while stderr says how far they are, where that takes long; of several ranks, rank 0 speaks.  `leave`: a bar stays."""
    if os.environ.get("RANK", "0") != "0" or not total:
        yield from items
    elif shows_bars():
        yield from _tqdm()(items, total=total, desc=what, unit=f" {unit}", dynamic_ncols=True, delay=DELAY, leave=leave)
    else:
        said = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                say(f"{what}: {done} of {total} {unit}")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say every now and then that `what` is still under way, while nothing else is said; of several ranks, rank 0 speaks."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    began, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        pause = EVERY
        while not ended.wait(pause):
            if time.monotonic() - terminal.said_at > 0.9 * EVERY:
                say(f"{what}: {time.monotonic() - began:.0f} s")
            pause = min(2 * pause, 6 * EVERY)

    thread = threading.Thread(target=tell, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Bar:
    """How far a run is.  `steps` 0: the run is measured in hours, and its share is shown."""

    def __init__(self, steps: int, start: int, share: float, then: str = "") -> None:
        """`start`, `share`: where this sitting begins; `then`: what comes behind the last step."""
        self._then = f", then {then}" if then else ""
        self._steps, self._share, self._began, self._said = steps, share, time.monotonic(), float("-inf")
        self._bar: Any = None
        if shows_bars():
            total, initial = (steps, start) if steps else (1000, round(1000 * share))
            self._bar = _tqdm()(total=total, initial=initial, unit=" step", dynamic_ncols=True, bar_format=None if steps else SHARE)

    def update(self, step: int, share: float) -> None:
        """After every step."""
        if self._bar is not None:
            self._bar.update((step if self._steps else round(1000 * share)) - self._bar.n)

    def tell(self, row: dict[str, Any], share: float) -> None:
        """After every logged step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}{self._scored(row)}, {row['images_per_second']:.0f} images/s")
        elif share >= 1 or self._scored(row) or time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            at = f"step {row['step']}" + (f" of {self._steps}" if self._steps else f" ({share:.0%})")
            pace = f"{row['images_per_second']:.0f} images/s{self._left(share)}"
            say(f"{at}, epoch {row['epoch']}: loss {row['loss']:.4f}{self._scored(row)}, {pace}")

    def say(self, line: str) -> None:
        """A line of its own."""
        say(line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    @staticmethod
    def _scored(row: dict[str, Any]) -> str:
        """The first score of each evaluation that this row holds, without its baselines."""
        first: dict[str, str] = {}
        for name, value in row.items():
            head, *words = name.split("/")
            if head == "score" and len(words) == 2 and value is not None:
                first.setdefault(words[0], f", {words[0]} {words[1]} {value:.1f}")
        return "".join(first.values())

    def _left(self, share: float) -> str:
        gone = share - self._share
        if gone <= 0 or share >= 1:
            return ""
        seconds = (time.monotonic() - self._began) * (1 - share) / gone
        for unit, size, digits in (("h", 3600, 1), ("min", 60, 0)):
            if seconds >= 1.5 * size:
                return f", {seconds / size:.{digits}f} {unit} left{self._then}"
        return f", {seconds:.0f} s left{self._then}"
