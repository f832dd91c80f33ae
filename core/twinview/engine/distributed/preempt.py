"""SIGTERM: what a scheduler sends before it takes the machine away.  The run saves at the end of the step that it is in, and ends."""
from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist


class Notice:
    """Whether any rank has been told to end."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where ranks can send from."""
        self.told, self.device = False, device

    def tell(self) -> None:
        """This rank has been told."""
        self.told = True

    def given(self) -> bool:
        """The same answer on every rank, and every rank must ask: a scheduler may have told only one."""
        if dist.get_world_size() == 1:
            return self.told
        told = torch.tensor(float(self.told), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when SIGTERM comes, in place of ending this process.  Processes forked meanwhile end as they always did."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    owner = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            act()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
