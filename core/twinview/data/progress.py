"""Progress of long work: a bar on a terminal, plain lines in a log."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines of a log


def progress(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The same items, while stderr says how far they are; of several ranks, rank 0 speaks."""
    if os.environ.get("RANK", "0") != "0":
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=f" {unit}", dynamic_ncols=True)
    else:
        said = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                print(f"{what}: {done} of {total} {unit}", file=sys.stderr, flush=True)
