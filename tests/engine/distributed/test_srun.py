"""Two tasks as srun starts them: only its variables are set.  One is killed; both are started again."""
from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from processes import Process, Processes

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table


def srun(processes: Processes, folder: Path, job: int) -> list[Process]:
    """The two tasks of a job; the port is that of the job's number."""
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")}
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_ID": str(job)}
    words = ["train", str(folder / "tiny.toml"), "--run", str(folder / "run"), "--resume", "auto"]
    return [processes.start(*words, env={**plain, **step, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}) for k in (0, 1)]


def test_a_killed_task_ends_the_other_and_the_next_start_goes_on(tiny: dict[str, Any], tmp_path: Path, processes: Processes) -> None:
    table = {**tiny, "encoder": {"use": "smallnet.encoder", "dropout": 0.0}, "run": {**tiny["run"], "steps": 60, "checkpoint_every": 3}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    rows, job = tmp_path / "run/metrics.jsonl", os.getpid()
    first, second = srun(processes, tmp_path, job)
    while not rows.is_file() or rows.read_bytes().count(b"\n") < 5:
        time.sleep(0.01)
        assert first.poll() is None and second.poll() is None, "the run ended by itself"
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    assert first.wait(30) == 2 and time.monotonic() - killed < 10
    said = first.stderr
    assert said.splitlines()[-1] == "twinview: rank 0: another rank is gone, and its own error says why. Go on from the last checkpoint with --resume."
    assert "Traceback" not in said
    assert second.wait() == -signal.SIGKILL
    reached = rows.read_bytes().count(b"\n")
    for task in srun(processes, tmp_path, job + 1):
        assert task.wait(60) == 0, task.stderr
    assert 5 <= reached < 60
    train(from_table(table), tmp_path / "one")
    two, one = ([row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("run", "one"))
    assert len(two) == 60 and two[:50] == pytest.approx(one[:50], rel=1e-4)
