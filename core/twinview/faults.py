"""Explains errors of the system and of libraries in one line, in place of a traceback.  Imports nothing heavy."""
from __future__ import annotations

import errno
import os
import re

from twinview.errors import CheckpointError, RankLost, TwinviewError
from twinview.machine import TIMEOUT
from twinview.terminal import one_line

FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = ("onnection closed by peer", "onnection reset by peer", "roken pipe", "remote process exited", "onnection refused", "onnection aborted")
LATE = re.compile(r"timed out|timeout|time-out", re.IGNORECASE)
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory|unable to mmap|std::bad_alloc|can't start new thread")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|file write failed|failed writing file|unexpected pos \d+ vs \d+")


def explained(error: BaseException) -> TwinviewError | None:
    """The one line that an error of the system deserves; None of an error that is a fault of the code."""
    if isinstance(error, TwinviewError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM) or NO_MEMORY.search(text):
        limits = "Write a smaller run.batch_size, a larger run.accumulation, or fewer data.workers; see the limits (ulimit -v, the job's memory)"
        return TwinviewError(f"there is no memory left{_of(error)}. {limits}.")
    if isinstance(error, OSError):
        return full(error) if error.errno in FULL else None
    return lost(error) if isinstance(error, RuntimeError) else None


def lost(error: RuntimeError) -> TwinviewError | None:
    """Gloo's, NCCL's and the rendezvous's own words for a rank that is gone, or that does not answer."""
    distributed = type(error).__module__.startswith("torch") or re.search(r"gloo|nccl|recv operation|send operation|TCPStore|Broken pipe", str(error))
    me = f"rank {os.environ.get('RANK', 0)}"
    if any(word in str(error) for word in GONE):
        return RankLost(f"{me}: another rank is gone, and its own error says why. Go on from the last checkpoint with resume=True.")
    if distributed and LATE.search(str(error)):
        waited = f"another rank has not answered for {os.environ.get(TIMEOUT, '1800')} s ({TIMEOUT})"
        return RankLost(f"{me}: {waited}: it hangs, or works that long alone. Go on from the last checkpoint with resume=True.")
    return None


def full(error: BaseException, place: str = "") -> TwinviewError:
    """What to say of a full disk; `place`: the folder that was written to."""
    named = place or one_line(getattr(error, "filename", None) or "a file")
    return CheckpointError(f"{named}: the disk is full, or the quota is used up. Make room, or write to another place; what was complete is kept.")


def is_full(error: BaseException) -> bool:
    """Whether an error of writing means that there is no room: the system's own, or torch's, which drops the system's reason."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, RuntimeError) and NO_SPACE.search(str(error)) is not None


def _of(error: BaseException) -> str:
    text = one_line(str(error).strip().splitlines()[0]) if str(error).strip() else ""
    return f" ({text[:120].rstrip('.')})" if text else ""
