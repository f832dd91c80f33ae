"""Several ranks on this machine without a launcher: forked from one process that has paid for the imports."""
from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from twinview.engine.distributed.preempt import AGAIN, on_signals
from twinview.engine.distributed.process import STORE, adopt_slurm, join, leave, pick_device, quiet_deepspeed, telling_faults
from twinview.errors import Preempted, RankLost, TwinviewError
from twinview.machine import rank_variable
from twinview.terminal import printable

GRACE = 2.0  # seconds in which other ranks may still say why they failed


class _Word(NamedTuple):
    """A rank's last message.  `weight`: how likely it is to be the cause, lowest first."""

    weight: int
    rank: int
    text: str
    fault: TwinviewError | None = None
    result: Any = None


def launch(ranks: int, work: Callable[[], Any], device: str = "auto") -> Any:
    """Do `work` in `ranks` processes that form one group, and give rank 0's (picklable) result.

    When a rank fails or dies, the others are stopped, and the first rank's own error is raised as one line; when this process dies, they
    end themselves.  Raises TwinviewError.
    """
    if ranks == 1:
        return work()
    adopt_slurm()
    if rank_variable("WORLD_SIZE", 1) > 1:
        raise TwinviewError(f"ranks: {ranks}, and a launcher started this process already. Leave ranks={ranks} out.")
    if dist.is_initialized() or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise TwinviewError(f"{ranks} ranks: this process has trained already, and what it holds cannot be forked. Start them from a new process.")
    kind = pick_device(device)
    if kind == "cpu":
        quiet_deepspeed(kind)  # paid for once; with a GPU each rank imports it alone, since a context must not be forked
    context = mp.get_context("fork")
    alive, lifeline = os.pipe()
    with tempfile.TemporaryDirectory(prefix="twinview-ranks-") as folder:
        store = os.path.join(folder, "store")
        children, ears = [], []
        for rank in range(ranks):
            ear, mouth = context.Pipe(duplex=False)
            child = context.Process(target=_rank, args=(rank, ranks, store, device, work, mouth, (alive, lifeline)), name=f"rank {rank}")
            child.start()
            mouth.close()
            children.append(child)
            ears.append(ear)
        words: list[_Word] = []
        told = _Told(children)
        try:
            with on_signals(told.tell):
                words = _listen(children, ears)
        finally:
            _stop(children, patience=10 if words and not any(w.weight for w in words) else 0)
            os.close(lifeline)
            os.close(alive)
    cause = min(words, key=lambda w: w.weight)  # min keeps the first of equals: the order in which they were heard
    if cause.weight == 0:
        return next(w.result for w in words if w.rank == 0)
    if told.number and not isinstance(cause.fault, Preempted):
        ended = Preempted(f"told to end, and rank {cause.rank} could not save: {cause.text.strip().splitlines()[-1].rstrip('.')}.")
        ended.number = told.number
        raise ended
    if cause.fault is not None:
        raise cause.fault
    sys.stderr.write(printable(cause.text) if "\n" in cause.text else "")
    raise TwinviewError(f"rank {cause.rank} failed: {cause.text.strip().splitlines()[-1]}")


def _rank(rank: int, world: int, store: str, device: str, work: Callable[[], Any], mouth: Connection, pipe: tuple[int, int]) -> None:
    alive, lifeline = pipe
    os.close(lifeline)
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which passes it on as a SIGTERM
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), STORE: store})
    try:
        with telling_faults():
            join(device)
            result = work()
        word = pickle.dumps(_Word(0, rank, "", result=result if rank == 0 else None))
        leave()
    except TwinviewError as e:
        word = pickle.dumps(_Word(4 if isinstance(e, RankLost) else 1, rank, str(e), e))
    except BaseException:
        word = pickle.dumps(_Word(2, rank, traceback.format_exc()))
    mouth.send_bytes(word)  # pickled plainly: multiprocessing would lend out a tensor's memory, which ends with this process
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no interpreter shutdown: it would wait for threads of a group that is broken


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)  # nothing is ever written: this returns when the last writer, the parent, is gone
    os._exit(1)


def _listen(children: list[Any], ears: list[Connection]) -> list[_Word]:
    """Each rank's last message, in the order of arrival; ends early, a little after the first failure."""
    words: list[_Word] = []
    silent = dict(enumerate(ears))
    until = float("inf")
    while silent and time.monotonic() < until:
        wait(list(silent.values()), timeout=0.2)  # a dead rank's data workers may hold its pipe open: its exit code is asked for too
        for rank, ear in list(silent.items()):
            dead = children[rank].exitcode is not None
            if dead or ear.poll():
                del silent[rank]
                words.append(_hear(rank, ear, children[rank]))
        if until == float("inf") and any(w.weight for w in words):
            until = time.monotonic() + GRACE
    return words


def _hear(rank: int, ear: Connection, child: Any) -> _Word:
    if ear.poll():
        try:
            word: _Word = pickle.loads(ear.recv_bytes())
            return word
        except EOFError:
            child.join()
    if child.exitcode < 0:
        hint = " (out of memory?)" if child.exitcode == -signal.SIGKILL else ""
        return _Word(3, rank, f"killed by {signal.Signals(-child.exitcode).name}{hint}")
    return _Word(3, rank, f"ended with exit code {child.exitcode}")


class _Told:
    """Passes a SIGTERM or a Ctrl-C on: the ranks save, and end."""

    def __init__(self, children: list[Any]) -> None:
        self.children, self.number, self.when = children, 0, 0.0

    def tell(self, number: int) -> None:
        """A second Ctrl-C raises KeyboardInterrupt: the ranks are stopped."""
        if self.number and number == signal.SIGINT and time.monotonic() - self.when > AGAIN:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.when = number, time.monotonic()
        for child in self.children:
            if child.exitcode is None:
                child.terminate()


def _stop(children: list[Any], patience: float) -> None:
    """Collect all ranks, so that none is left a zombie: wait `patience` seconds, then ask, then kill."""
    for end, seconds in ((None, patience), ("terminate", 5.0), ("kill", None)):
        for child in children:
            if end and child.exitcode is None:
                getattr(child, end)()
        until = None if seconds is None else time.monotonic() + seconds
        for child in children:
            child.join(None if until is None else max(0.0, until - time.monotonic()))
