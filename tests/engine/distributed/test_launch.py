"""Ranks that are started here: each test's launches happen in one new process, since only a process that has not trained can fork them."""
from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from processes import Processes

from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import averaged, gathered, join, on_first
from twinview.errors import DataError, TwinviewError


def said(ranks: int, work: Callable[[], Any]) -> Any:
    """What ranks give, or what is raised and after how many seconds."""
    began = time.monotonic()
    try:
        return launch(ranks, work)
    except Exception as e:
        return [type(e).__name__, str(e), time.monotonic() - began]


def works() -> Any:
    numbers = averaged({"a": float(dist.get_rank()), **({"b": 4.0} if dist.get_rank() else {})})
    return [gathered(dist.get_rank()), on_first(os.getpid) == gathered(os.getpid())[0], numbers]


def faults() -> None:
    if dist.get_rank() == 1:
        raise DataError("shard 3: is damaged.")
    dist.barrier()


def fault_on_first() -> None:
    def work() -> None:
        raise DataError("shard 4: is damaged.")

    on_first(work)


def crashes() -> None:
    if dist.get_rank() == 1:
        raise ZeroDivisionError("a fault of the program")
    dist.barrier()


def is_killed() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def leaves() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def stalls() -> None:
    """In a group that DeepSpeed cloned, which would wait half an hour."""
    clone: Any = dist.new_group([0, 1])
    if dist.get_rank() == 1:
        time.sleep(60)
    dist.barrier(group=clone)


def one_after_another() -> dict[str, Any]:
    answers = {w.__name__: said(2, w) for w in (works, faults, fault_on_first, crashes, is_killed, leaves)}
    os.environ["TWINVIEW_TIMEOUT"] = "3"
    answers["stalls"] = said(2, stalls)
    try:
        os.waitpid(-1, os.WNOHANG)
        answers["children"] = "some"
    except ChildProcessError:
        answers["children"] = "none"
    return answers


def test_ranks_form_a_group_and_a_failure_is_told_once_and_ends_all(processes: Processes) -> None:
    found = processes.call(one_after_another)
    assert found["works"] == [[0, 1], True, {"a": 0.5, "b": 4.0}]
    assert found["faults"][:2] == ["DataError", "shard 3: is damaged."]
    assert found["fault_on_first"][:2] == ["DataError", "shard 4: is damaged."]
    assert found["crashes"][:2] == ["TwinviewError", "rank 1 failed: ZeroDivisionError: a fault of the program"]
    assert found["is_killed"][:2] == ["TwinviewError", "rank 1 failed: killed by SIGKILL (out of memory?)"]
    assert found["leaves"][:2] == ["TwinviewError", "rank 1 failed: ended with exit code 7"]
    assert all(found[how][2] < 10 for how in ("faults", "crashes", "is_killed", "leaves"))  # seconds
    assert "rank 0: another rank has not answered for 3 s (TWINVIEW_TIMEOUT)" in found["stalls"][1] and 3 <= found["stalls"][2] < 30
    assert found["children"] == "none"


def alive(group: int) -> int:
    """Processes of a group that run."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            stats.append(path.read_text().rpartition(")")[2].split())
    return sum(int(s[2]) == group and s[0] not in "ZX" for s in stats)


def wait() -> None:
    print("x", end="", flush=True)
    time.sleep(60)


def two_ranks_that_wait() -> None:
    launch(2, wait)


def test_ranks_end_when_the_process_that_started_them_is_killed(processes: Processes) -> None:
    child = processes.begin(two_ranks_that_wait, leads=True)
    child.wait_for(lambda: child.stdout == "xx" and alive(child.pid) == 3)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    until = time.monotonic() + 10
    while alive(child.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child.pid)


def alone_of_two() -> list[str]:
    answers = []
    for _ in range(2):
        try:
            join("cpu")
        except TwinviewError as e:
            answers.append(str(e))
        os.environ.pop("MASTER_PORT", None)
    return answers


def test_the_others_out_of_reach_are_told_with_the_variable_that_helps(processes: Processes) -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TWINVIEW_TIMEOUT": "1"}
    away, unset = processes.call(alone_of_two, env={**os.environ, **env})
    assert away.startswith("rank 1 cannot reach the other ranks (127.0.0.1:1): ") and "GLOO_SOCKET_IFNAME" in away and "\n" not in away
    assert unset == "WORLD_SIZE is 2, but MASTER_ADDR or MASTER_PORT is not set. Start with torchrun, deepspeed or ranks=2."


def test_a_process_that_has_trained_starts_no_ranks() -> None:
    join("cpu")
    assert launch(1, lambda: 5) == 5
    with pytest.raises(TwinviewError, match=r"^2 ranks: this process has trained already"):
        launch(2, lambda: 5)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TwinviewError, match=r"^\[run\] device: this machine shows no CUDA device"):
        join("cuda")
