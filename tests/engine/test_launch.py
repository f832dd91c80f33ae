"""Ranks that are started here: each test's launches happen in one new process, since only a process that has not trained can fork them."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import join
from twinview.errors import TwinviewError

START = """
import json, os, signal, sys, time
import torch, torch.distributed as dist
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import averaged, gathered, on_first
from twinview.errors import DataError

def said(ranks, work):
    began = time.monotonic()
    try:
        return launch(ranks, work)
    except Exception as e:
        return [type(e).__name__, str(e), time.monotonic() - began]
"""


def drive(code: str, **env: str) -> Any:
    """What a new process prints as JSON at last."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ranks_form_a_group_and_a_failure_is_told_once_and_ends_all() -> None:
    found = drive("""
        def works():
            numbers = averaged({"a": float(dist.get_rank()), **({"b": 4.0} if dist.get_rank() else {})})
            return [gathered(dist.get_rank()), on_first(lambda: os.getpid()) == gathered(os.getpid())[0], numbers]

        def faults():
            if dist.get_rank() == 1:
                raise DataError("shard 3: is damaged.")
            dist.barrier()

        def fault_on_first():
            def work():
                raise DataError("shard 4: is damaged.")
            on_first(work)

        def crashes():
            if dist.get_rank() == 1:
                raise ZeroDivisionError("a fault of the program")
            dist.barrier()

        def is_killed():
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()

        def leaves():
            if dist.get_rank() == 1:
                os._exit(7)
            dist.barrier()

        def stalls():  # in a group that DeepSpeed cloned, which would wait half an hour
            clone = dist.new_group([0, 1])
            if dist.get_rank() == 1:
                time.sleep(60)
            dist.barrier(group=clone)

        answers = {w.__name__: said(2, w) for w in (works, faults, fault_on_first, crashes, is_killed, leaves)}
        os.environ["TWINVIEW_TIMEOUT"] = "3"
        answers["stalls"] = said(2, stalls)
        try:
            os.waitpid(-1, os.WNOHANG)
            answers["children"] = "some"
        except ChildProcessError:
            answers["children"] = "none"
        print(json.dumps(answers))
    """)
    assert found["works"] == [[0, 1], True, {"a": 0.5, "b": 4.0}]
    assert found["faults"][:2] == ["DataError", "shard 3: is damaged."]
    assert found["fault_on_first"][:2] == ["DataError", "shard 4: is damaged."]
    assert found["crashes"][:2] == ["TwinviewError", "rank 1 failed: ZeroDivisionError: a fault of the program"]
    assert found["is_killed"][:2] == ["TwinviewError", "rank 1 failed: killed by SIGKILL (out of memory?)"]
    assert found["leaves"][:2] == ["TwinviewError", "rank 1 failed: ended with exit code 7"]
    assert all(found[how][2] < 10 for how in ("faults", "crashes", "is_killed", "leaves"))  # seconds
    assert "rank 0: another rank has not answered for 3 s (TWINVIEW_TIMEOUT)" in found["stalls"][1] and 3 <= found["stalls"][2] < 30
    assert found["children"] == "none"


def test_ranks_end_when_the_process_that_started_them_is_killed() -> None:
    found = drive("""
        from pathlib import Path

        def alive(group):
            stats = [p.read_text().rpartition(")")[2].split() for p in Path("/proc").glob("[0-9]*/stat")]
            return sum(int(s[2]) == group and s[0] not in "ZX" for s in stats)

        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            launch(2, lambda: (os.write(tell, b"x"), time.sleep(60)))
        os.read(ready, 2)
        while (before := alive(child)) < 3:
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        until = time.monotonic() + 10
        while alive(child) and time.monotonic() < until:
            time.sleep(0.05)
        print(json.dumps([before, alive(child)]))
    """)
    assert found == [3, 0]


def test_the_others_out_of_reach_are_told_with_the_variable_that_helps() -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TWINVIEW_TIMEOUT": "1"}
    code = """
        from twinview.engine.distributed.process import join
        from twinview.errors import TwinviewError
        answers = []
        try:
            join("cpu")
        except TwinviewError as e:
            answers.append(str(e))
        del os.environ["MASTER_PORT"]
        try:
            join("cpu")
        except TwinviewError as e:
            answers.append(str(e))
        print(json.dumps(answers))
    """
    away, unset = drive(code, **env)
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
