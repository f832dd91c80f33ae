"""One run in a folder at a time, and a lock that the dead do not hold."""
from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Process, Processes

from twinview.analysis.load import load_encoder
from twinview.engine import run_lock
from twinview.engine.run_lock import NAME, locked, locks_reach
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.recipe import from_table


def held(folder: Path) -> None:
    with locked(folder, "twinview train x"):
        print("held", flush=True)
        time.sleep(60)


@pytest.fixture
def hold(processes: Processes) -> Callable[[Path], Process]:
    """`hold(folder)`: another process that holds the lock."""

    def begin(folder: Path) -> Process:
        holder = processes.begin(held, folder)
        holder.wait_for(lambda: holder.stdout == "held\n")
        return holder

    return begin


def test_a_second_run_is_refused_and_told_of_the_first(hold: Callable[[Path], Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    holder = hold(tmp_path)
    who = rf"a run is at work in it: process {holder.pid} on {socket.gethostname()} since 20..-..-.. ..:..:.."
    with pytest.raises(CheckpointError, match=who), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)  # the dead hold nothing, and what they have written is overwritten
    holder.wait()
    assert json.loads((tmp_path / NAME).read_text())["process"] == holder.pid
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
        with pytest.raises(CheckpointError, match="this process trains in it already"), locked(tmp_path):
            pass
    assert (tmp_path / NAME).read_text() == ""


def test_a_killed_process_that_is_still_going_is_waited_for(hold: Callable[[Path], Process], tmp_path: Path) -> None:
    holder = hold(tmp_path)
    threading.Timer(0.5, holder.kill).start()
    with locked(tmp_path):
        pass
    holder.wait()


def test_data_workers_do_not_hold_it(hold: Callable[[Path], Process], tmp_path: Path) -> None:
    """A forked process may live on for seconds after the one that trains was killed."""
    child = 0
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        holder = hold(tmp_path)
        holder.kill()
        holder.wait()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def elsewhere(folder: Path) -> Path:
    """What a run on another machine, that was killed or is at work, has left."""
    (folder / NAME).write_text(json.dumps({"host": "node7", "process": 12, "since": "2026-01-01 00:00:00+00:00"}))
    return folder / NAME


def test_where_locks_do_not_reach_other_machines_their_touches_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SILENT", 0.6), ("BEAT", 0.1)):
        monkeypatch.setattr(run_lock, name, seconds)
    path = elsewhere(tmp_path)
    with locked(tmp_path):  # here they do: the lock alone decides
        pass
    monkeypatch.setattr(run_lock, "locks_reach", lambda _: False)
    elsewhere(tmp_path)
    ended = threading.Event()

    def touch() -> None:
        for n in range(1, 100):
            if not ended.wait(0.1):
                os.utime(path, ns=(n, n))

    beat = threading.Thread(target=touch)
    beat.start()
    with pytest.raises(CheckpointError, match="process 12 on node7 since 2026-01-01"), locked(tmp_path):
        pass
    ended.set()
    beat.join()
    with locked(tmp_path):  # dead: nobody touches it
        first = path.stat().st_mtime_ns
        until = time.monotonic() + 5
        while path.stat().st_mtime_ns == first and time.monotonic() < until:
            time.sleep(0.05)
        assert path.stat().st_mtime_ns != first


def test_which_file_systems_carry_locks(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "2 1 0:1 / /nfs rw,relatime shared:2 - nfs4 server:/x rw,vers=4.2,local_lock=none\n"
        "3 1 0:2 / /old rw,relatime shared:3 - nfs server:/y rw,vers=3,nolock,local_lock=all\n"
        "4 1 0:3 / /a\\040b rw,relatime shared:4 - fuse.sshfs host:/ rw\n"
        "5 1 0:4 / /lustre rw,flock shared:5 - lustre mgs:/fs rw,flock,lazystatfs\n"
        "6 1 0:5 / /scratch rw shared:6 - lustre mgs:/fs rw,localflock\n"
    )
    found = {where: locks_reach(Path(where), mounts) for where in ("/home/run", "/nfs/run", "/old/run", "/a b/run", "/lustre/run", "/scratch/run", "/nfsx")}
    assert found == {"/home/run": True, "/nfs/run": True, "/old/run": False, "/a b/run": False, "/lustre/run": True, "/scratch/run": False, "/nfsx": True}
    assert locks_reach(tmp_path, tmp_path / "none")


def test_a_run_that_is_at_work_is_left_alone_and_may_be_read(
    tiny: dict[str, Any], hold: Callable[[Path], Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    run = tmp_path / "run"
    table = {**tiny, "run": {**tiny["run"], "steps": 2}}
    train(from_table(table), run)
    rows = (run / "metrics.jsonl").read_text()
    holder = hold(run)
    try:
        for resume in (True, "auto"):
            with pytest.raises(CheckpointError, match=rf"{run}: a run is at work in it: process {holder.pid} on "):
                train(from_table({**table, "run": {**table["run"], "steps": 4}}), run, resume=resume)
        assert (run / "metrics.jsonl").read_text() == rows
        assert load_encoder(run) is not None
    finally:
        holder.kill()
        holder.wait()
    train(from_table(table), run, resume="auto")
