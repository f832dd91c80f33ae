"""What this machine has, and what the environment says to every part of twinview.  Imports nothing heavy."""
from __future__ import annotations

import ctypes
import math
import os

from twinview.errors import TwinviewError

TIMEOUT = "TWINVIEW_TIMEOUT"  # seconds that a rank waits for the others, or for its data


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Whether this process now keeps the memory of large tensors when they are freed, for the next ones, instead of giving it back to the system.

    Gradients are dropped after every step, and each page that comes back costs a page fault in the next backward pass.  glibc alone; elsewhere
    nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # numbers of malloc.h
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def rank_variable(name: str, default: int = 0) -> int:
    """RANK, WORLD_SIZE and their like, as a launcher sets them.  Raises TwinviewError where it is no number of at least 0."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise TwinviewError(f"{name}: is {text!r} in the environment, and wants a whole number. Launchers set it; unset it to train in one process.")
    return int(text)


def timeout() -> float:
    """Seconds that a wait for another rank, or for data, may take: 1800, or what TWINVIEW_TIMEOUT says.  Raises TwinviewError."""
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e8:
        raise TwinviewError(f"{TIMEOUT}: is {text!r} in the environment, and wants seconds above 0, for example 1800.")
    return seconds
