"""SIGTERM (a scheduler that wants the machine) and SIGINT (Ctrl-C): the run saves where it stands, and ends.

Between steps the state of a run is whole, so a run saves at the end of the step that it is in.  Where it waits for data, or evaluates, it does not
wait for the end.  Where it waits in code that no Python handler interrupts (another rank, a rendezvous, a file server), a thread sees to it that
the process ends: it is told of signals through a pipe that the system's handler writes to.
"""
from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from twinview.errors import Preempted
from twinview.terminal import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 1.0  # seconds after which another Ctrl-C is a second one: a terminal and a launcher may both pass on the first
STARTING = 5.0  # seconds from a signal to the end, where nothing is lost yet
STEP = 25.0  # of a step, at least; longer steps get twice the time of the longest
SAVING = 600.0  # of a checkpoint under way
POLL = 0.2


class Told(BaseException):
    """A signal came where the run need not wait.  No `except Exception` catches it."""


class Notice:
    """Whether this process has been told to end, and how long it may take until it does."""

    def __init__(self) -> None:
        self.number = 0  # of the first signal
        self.when = 0.0
        self.steps = 0.0  # seconds of the longest step
        self.words = "told to end before the first step"  # what is said where the process cannot wait for its own end
        self.phase: tuple[float, float] = (time.monotonic(), STARTING)  # when what it does now began, and the seconds that it may take
        self._eager = 0
        self.ahead = False  # the thread has noted a signal whose handler is still to run

    @property
    def told(self) -> bool:
        """Whether a signal came."""
        return self.number > 0

    def tell(self, number: int) -> None:
        """The handler: note it; where the run need not wait, raise Told.  A second Ctrl-C raises KeyboardInterrupt."""
        ahead, self.ahead = self.ahead, False
        if not ahead and self.number and number == signal.SIGINT and time.monotonic() - self.when > AGAIN:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.when = number, time.monotonic()
        if self._eager:
            raise Told

    @contextmanager
    def eager(self, really: bool = True) -> Iterator[None]:
        """A signal in here, or one that came before, raises Told.  `really` False: nothing is changed."""
        self._eager += really
        try:
            if really and self.told:
                raise Told
            yield
        finally:
            self._eager -= really

    def may_take(self, seconds: float) -> None:
        """Something begins that should be done within these seconds of a signal."""
        self.phase = (time.monotonic(), seconds)

    def stepping(self) -> None:
        """A step begins."""
        self.may_take(max(STEP, 2 * self.steps))

    @property
    def late(self) -> bool:
        """Whether a signal came, and what is under way has taken too long since."""
        began, seconds = self.phase
        return self.told and time.monotonic() - max(began, self.when) > seconds

    def fault(self, words: str) -> Preempted:
        """How the run ends."""
        made = Preempted(words)
        made.number = self.number or int(signal.SIGTERM)
        return made

    def given(self, device: torch.device) -> bool:
        """The same answer on every rank, and every rank must ask: a scheduler may have told only one.  `device`: where ranks can send from.

        A signal that comes while ranks ask each other is heard when they ask next.
        """
        if dist.get_world_size() == 1:
            return self.told
        told = torch.tensor(self.number, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        heard = int(told)  # on a GPU this is where it waits for the others
        if heard and not self.number:
            self.number = heard
        return heard > 0


@contextmanager
def noticing() -> Iterator[Notice]:
    """Signals are noted in place of ending this process, until the end of the block; a process that takes too long is ended."""
    notice = Notice()
    with on_signals(notice.tell), _watched(notice):
        yield notice


@contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` when SIGTERM or SIGINT comes.  Those that are ignored stay so, and processes forked meanwhile end as they always did."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    owner = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            act(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, was in before.items():
        if was != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)


@contextmanager
def _watched(notice: Notice) -> Iterator[None]:
    """A thread hears of signals even while the main thread waits in code that is not Python's, and ends the process where it takes too long."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hear, speak = os.pipe()
    os.set_blocking(speak, False)
    before = signal.set_wakeup_fd(speak, warn_on_full_buffer=False)
    _wakeups.append(speak)
    thread = threading.Thread(target=_watch, args=(notice, hear), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        _wakeups.remove(speak)
        signal.set_wakeup_fd(before)
        os.close(speak)
        thread.join()
        os.close(hear)


_wakeups: list[int] = []
_forking = threading.local()


def _before_fork() -> None:
    """Signals wait until the forked process no longer writes to this one's pipe."""
    if _wakeups:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    mask = getattr(_forking, "mask", None)
    if mask is not None:
        _forking.mask = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_forked() -> None:
    """Its signals are its own, and not its parent's."""
    if _wakeups:
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(-1)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked)


def _watch(notice: Notice, hear: int) -> None:
    insisted = float("inf")  # when a second Ctrl-C came
    while True:
        ready, _, _ = select.select([hear], [], [], POLL)
        some, now = os.read(hear, 64) if ready else None, time.monotonic()
        if some == b"":
            return  # the block has ended
        for number in some or ():
            if number in SIGNALS and not notice.number:  # the main thread's handler may not run before long
                notice.number, notice.when, notice.ahead = number, now, True
            elif number == signal.SIGINT and now - notice.when > AGAIN:
                insisted = min(insisted, now)
        if now - insisted > STARTING:
            _end(signal.SIGINT, "interrupted")
        if notice.late:
            _end(notice.number, notice.words)


def _end(number: int, words: str) -> Any:
    """End this process here and now: its main thread cannot."""
    say(f"twinview: {words}")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(128 + number)
