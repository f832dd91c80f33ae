"""Waits for data: a full /dev/shm, killed and stopped workers, and the signals that workers leave to the training process."""
from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twinview.data.loading import loader, transfer
from twinview.data.loading.loader import load
from twinview.errors import DataError


def large(n: int) -> Tensor:
    return torch.full((1 << 18,), n)


def test_a_full_dev_shm_is_an_error_and_no_lost_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes shared memory in a thread of the worker, whose error is printed and forgotten: the batch never comes."""

    def full(_: Tensor) -> Tensor:
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # in the worker, which is forked
    with pytest.raises(DataError, match=r"^\[data\] workers: /dev/shm is full, .*docker run --shm-size=8g\), or write data\.workers=0\.$"):
        next(load(large, range(4), 1))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/shm").is_dir(), reason="mounts a file system of 1 MB")
def test_a_dev_shm_of_a_megabyte() -> None:
    """In a mount namespace of its own, as `docker run --shm-size=1m` would have it."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if os.system("unshare --mount true 2>/dev/null"):
                code = 77
            else:
                code = _in_a_small_dev_shm()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 77:
        pytest.skip("may not mount")
    assert code == 0


def _in_a_small_dev_shm() -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive = 0x00020000, 1 << 18, 1 << 14
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private | recursive, None):
        return 77
    if libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
        return 77
    try:
        list(load(large, range(4), 1))  # 2 MiB each
    except DataError as e:
        return 0 if "/dev/shm is full" in str(e) else 4
    return 5


def test_words_of_other_limits() -> None:
    said = [str(transfer.out_of_memory(OSError(words))) for words in ("[Errno 24] Too many open files", "received 0 items of ancdata")]
    assert all("Raise the limit (ulimit -n)" in line for line in said)
    assert transfer.out_of_memory(RuntimeError("shapes do not match")) is None


def killed_at_two(n: int) -> int:
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_a_killed_worker_is_told_of_where_its_batch_is_wanted() -> None:
    """torch's handler of SIGCHLD would raise in the middle of the network, wherever the training is."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = load(killed_at_two, range(9), 1)
    assert next(batches) == 0
    until = time.monotonic() + 1.5
    while time.monotonic() < until:  # the training: nothing is raised in here
        sum(range(1000))
    came = []
    with pytest.raises(DataError, match=r"^\[data\] workers: one ended unexpectedly"):
        for batch in batches:
            came.append(batch)
    assert came in ([], [1])  # a thread of the worker sends batch 1, which its death may forestall
    assert signal.getsignal(signal.SIGCHLD) == before


def stopped(n: int) -> int:
    os.kill(os.getpid(), signal.SIGSTOP)
    return n


def test_a_worker_that_does_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loader, "LOOK", 0.2)
    monkeypatch.setattr(loader, "TALK", 0.5)
    monkeypatch.setenv("TWINVIEW_TIMEOUT", "2")
    with pytest.raises(DataError, match=r"\[data\] workers: no batch for . s: worker \d+ is stopped \(SIGCONT lets it go on\).*set TWINVIEW_TIMEOUT; "):
        next(load(stopped, range(4), 1))
    assert "data: waiting for a batch for 1 s: worker" in capsys.readouterr().err
    assert not multiprocessing.active_children()


def deaf(n: int) -> list[bool]:
    return [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGTERM, signal.SIGINT)]


def test_workers_leave_signals_to_the_training_process() -> None:
    assert next(load(deaf, range(1), 1)) == [True, True]
