"""One of two ranks under torchrun is killed, or fails alone: everything ends soon, says why, leaves nothing behind, and the next start goes on."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import read

Table = dict[str, Any]
PROMISED = 10.0  # seconds, docs/large-runs.md; of a machine that has time for it, see `promised`
FAULTY = '''
import itertools
import os
import time
from torch.utils.data import get_worker_info
from twinview.errors import DataError
from twinview.hooks import hookimpl, part

SEEN = itertools.count(1)  # of a data worker: a part holds no state


@part
class Faulty:
    """Takes its time over an image; under `at`, rank 1 finds its N-th damaged."""

    seconds: float = 0.0
    at: int = 0

    @hookimpl(wrapper=True)
    def sample_views(self):
        time.sleep(self.seconds)
        if self.at and get_worker_info() and next(SEEN) == self.at and os.environ["RANK"] == "1":
            raise DataError("shards/some.tar: image 17: is damaged.")
        return (yield)


@hookimpl
def parts():
    return {"faulty": Faulty}
'''


@pytest.fixture
def start(tiny: Table, install: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `twinview train` under torchrun on two ranks, each with a data worker; all its processes bear a mark in their environment."""
    install("faulty", FAULTY)

    def begin(**options: Any) -> subprocess.Popen[str]:
        table = {**tiny, "extra": [{"use": "faulty.faulty", **options}], "data": {**tiny["data"], "workers": 1}}
        table["run"] = {**tiny["run"], "steps": 400, "checkpoint_every": 2}
        (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
        plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = [*torchrun, "-m", "twinview", "--", "train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "run"), "--resume", "auto"]
        with (tmp_path / "said").open("w") as said:
            return subprocess.Popen(words, stderr=said, text=True, env={**plain, "MARK": str(tmp_path)}, cwd=tmp_path)

    yield begin
    for pid in left(tmp_path):
        os.kill(pid, signal.SIGKILL)


def left(tmp_path: Path) -> dict[int, bytes]:
    """Every process that bears the mark, with its environment; a zombie has none any more."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # gone meanwhile
                environment = (folder / "environ").read_bytes()
                if f"MARK={tmp_path}\0".encode() in environment:
                    found[int(folder.name)] = environment
    return found


def zombies() -> list[str]:
    """Children of this process that nobody has collected."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats.append(path.read_text())
    fields = [(stat, *stat.rpartition(")")[2].split()[:2]) for stat in stats]
    return [stat for stat, state, parent in fields if state == "Z" and int(parent) == os.getpid()]


def rank_of(tmp_path: Path, rank: int) -> int:
    """The process that is a rank: the oldest that has its number, its data worker comes later."""
    return min(pid for pid, environment in left(tmp_path).items() if f"\0RANK={rank}\0".encode() in b"\0" + environment)


def promised() -> float:
    """The seconds that were promised, and as many more as other programs take of the machine."""
    wall, own = time.monotonic(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    return PROMISED * max(1.0, (time.monotonic() - wall) / 0.3)


def wait_until(run: subprocess.Popen[str], tmp_path: Path, what: Callable[[], bool]) -> None:
    """While the run is under way.  Raises AssertionError where it ends before, or after four minutes."""
    until = time.monotonic() + 240
    while not what():
        assert (run.poll() is None or what()) and time.monotonic() < until, said(tmp_path)
        time.sleep(0.05)


def said(tmp_path: Path) -> str:
    return (tmp_path / "said").read_text()


def steps(tmp_path: Path) -> int:
    return len(list(read_metrics(tmp_path / "run/metrics.jsonl")))


def test_a_killed_rank_takes_the_run_down_and_the_next_start_goes_on(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    run = start(seconds=0.02)
    wait_until(run, tmp_path, lambda: steps(tmp_path) >= 5)
    assert len(left(tmp_path)) >= 5  # torchrun, two ranks, a data worker each
    seconds = promised()
    os.kill(rank_of(tmp_path, 1), signal.SIGKILL)
    assert run.wait(seconds) not in (0, None) and left(tmp_path) == {} and zombies() == []
    assert "Signal 9 (SIGKILL)" in said(tmp_path)  # torchrun's; it may stop the other rank before that has noticed
    made = steps(tmp_path)

    def enough(row: dict[str, Any]) -> None:
        if row["step"] > made + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(read(tmp_path / "tiny.toml"), tmp_path / "run", resume="auto", on_progress=enough)
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, made + 4))


def test_the_error_of_one_rank_stands_on_top(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    run, fault = start(at=9), "twinview: shards/some.tar: image 17: is damaged."
    wait_until(run, tmp_path, lambda: fault in said(tmp_path))
    assert run.wait(promised()) == 1 and left(tmp_path) == {}
    own, lost = said(tmp_path).index(fault), said(tmp_path).find("another rank is gone")
    assert own < lost or lost < 0  # torchrun may stop the other rank before that has noticed
    assert "Traceback" not in said(tmp_path)[: max(own, lost)]
