"""SIGTERM and Ctrl-C: noted between steps, heard in every wait, and not taken for those of other processes."""
from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import Processes

from twinview.engine import setup
from twinview.engine.checkpoint import steps_in
from twinview.engine.distributed import preempt
from twinview.engine.distributed.preempt import Notice, Told, noticing
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import Preempted
from twinview.recipe import from_table


def wait_in_c() -> None:
    """For ever: no handler of Python runs."""
    preempt.STARTING = 0.5
    with preempt.noticing() as notice:
        notice.words = "run: told to end, and what was under way did not end in time"
        notice.may_take(0.5)
        mutex = ctypes.create_string_buffer(64)
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        print("waiting", flush=True)
        libc.pthread_mutex_lock(mutex)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_waits_in_c_is_ended(number: int, code: int, processes: Processes) -> None:
    process = processes.begin(wait_in_c)
    process.wait_for(lambda: process.stdout == "waiting\n")
    process.send_signal(number)
    assert process.wait() == code and process.stderr == "twinview: run: told to end, and what was under way did not end in time\n"


def test_a_signal_is_noted_and_eager_code_is_left() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with noticing() as notice:
        notice.may_take(60)
        signal.raise_signal(signal.SIGTERM)  # to this thread: os.kill may choose another, whose turn comes later
        assert notice.told and notice.number == signal.SIGTERM and not notice.late
        with pytest.raises(Told), notice.eager():
            pass
        with notice.eager(False):
            pass
        signal.raise_signal(signal.SIGINT)  # a launcher's, at once: no second Ctrl-C
        notice.when -= 2 * preempt.AGAIN
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with noticing() as notice, pytest.raises(Told), notice.eager():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("waits_in", ["all_reduce", "int"])  # where NCCL's all_reduce returns at once, the number is waited for
def test_a_signal_that_comes_while_ranks_ask_each_other_is_not_lost(monkeypatch: pytest.MonkeyPatch, waits_in: str) -> None:
    notice = Notice()
    during = iter([signal.SIGTERM])

    def signals() -> None:
        for number in during:
            notice.tell(number)

    class Number:
        def __init__(self, value: int, device: torch.device) -> None:
            self.value = value

        def __int__(self) -> int:
            if waits_in == "int":
                signals()
            return self.value

    monkeypatch.setattr("twinview.engine.distributed.preempt.torch.tensor", Number)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)  # of which the other one is never told
    monkeypatch.setattr(dist, "all_reduce", lambda told, op: signals() if waits_in == "all_reduce" else None)
    assert not notice.given(torch.device("cpu"))  # as on the other rank, which goes on with its next step
    assert notice.given(torch.device("cpu"))
    assert notice.fault("").number == signal.SIGTERM


def test_a_ctrl_c_that_the_main_thread_hears_of_late_is_one() -> None:
    """A backward pass on a CPU is one call of C: the thread that watches hears of the signal long before the handler runs."""
    with noticing() as notice:
        notice.may_take(60)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        until = time.monotonic() + preempt.AGAIN + 1
        while time.monotonic() < until:
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000)  # about a second, in which no handler runs
        timer.join()
        assert notice.told and notice.number == signal.SIGINT


def test_what_may_take_its_time() -> None:
    notice = Notice()
    notice.steps = 100.0
    notice.stepping()
    assert notice.phase[1] == 200.0 and not notice.late
    notice.tell(signal.SIGTERM)
    notice.phase = (time.monotonic() - 300, 200.0)
    assert not notice.late  # from the signal on
    notice.when -= 201
    assert bool(notice.late)
    assert notice.fault("x").number == signal.SIGTERM


def test_signals_of_forked_processes_are_their_own() -> None:
    with noticing() as notice:
        notice.may_take(60)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(2 * preempt.POLL)
        assert os.WTERMSIG(status) == signal.SIGTERM and not notice.told


def notice_ignored() -> tuple[bool, bool]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with noticing() as notice:
        os.kill(os.getpid(), signal.SIGINT)
    return notice.told, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_ignored_signals_stay_ignored(processes: Processes) -> None:
    """As under nohup, and in ranks that are forked here, whose parent passes Ctrl-C on."""
    assert processes.call(notice_ignored) == (False, True)


TELLS = '''
import os, signal
from twinview.hooks import hookimpl, part


@part
class Tells:
    """Sends a signal to its own process while it evaluates, the first time."""

    once: str
    number: int = 15

    @hookimpl
    def evaluate(self, branches):
        if not os.path.exists(self.once):
            open(self.once, "w").close()
            signal.raise_signal(self.number)
        return {"told": 1.0}


@hookimpl
def parts():
    return {"tells": Tells}
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_an_evaluation_saves_the_step_and_the_run_goes_on_with_the_evaluation(
    tiny: dict[str, Any], install: Callable[..., None], tmp_path: Path, number: int
) -> None:
    install("tells", TELLS)
    table = {**tiny, "evaluate": [{"use": "tells.tells", "every": 3, "once": str(tmp_path / "once"), "number": int(number)}]}
    table["run"] = {**tiny["run"], "steps": 4, "checkpoint_every": 100}
    (tmp_path / "once").touch()
    train(from_table(table), tmp_path / "whole")
    (tmp_path / "once").unlink()
    with pytest.raises(Preempted, match=r"told to end, and saved at step 3\. Go on with resume=True\.$") as caught:
        train(from_table(table), tmp_path / "run")
    assert caught.value.number == number and steps_in(tmp_path / "run/checkpoints") == [3]
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2]
    train(from_table(table), tmp_path / "run", resume="auto")
    rows, whole = (list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole"))
    assert [(row["step"], row["loss"], row.get("score/told")) for row in rows] == [(row["step"], row["loss"], row.get("score/told")) for row in whole]


def test_ctrl_c_between_steps_saves_and_says_how_to_go_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    def press(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Preempted, match=r"saved at step 2\. Go on with resume=True\.$"):
        train(from_table(tiny), tmp_path / "run", on_progress=press)
    with pytest.raises(Preempted, match=r"told to end before its first step"):
        _train_told(tiny, tmp_path / "other")
    assert not steps_in(tmp_path / "other/checkpoints")


def _train_told(tiny: dict[str, Any], folder: Path) -> None:
    """A signal while the data is opened."""
    def told(recipe: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "_open_data", told)
        train(from_table(tiny), folder)
