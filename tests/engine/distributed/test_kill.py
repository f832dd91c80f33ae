"""kill -9 at any moment: what is left is usable, and the losses go on as if nothing had happened."""
from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Process, Processes

from twinview.engine.distributed.launch import launch
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table


def losses(run: Path) -> list[float]:
    rows = list(read_metrics(run / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def train_on(table: dict[str, Any], folder: Path, ranks: int) -> None:
    launch(ranks, lambda: train(from_table(table), folder, resume="auto"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_to_the_last_bit(tiny: dict[str, Any], tmp_path: Path, processes: Processes, ranks: int) -> None:
    """30 steps, 5 an epoch, a checkpoint every 3, 2 accumulated micro-batches, 2 data workers; killed four times, wherever it is."""
    run = {**tiny["run"], "steps": 30, "batch_size": 4, "accumulation": 2, "checkpoint_every": 3, "sync_batchnorm": False}
    table = {**tiny, "data": {**tiny["data"], "workers": 2}, "run": run}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def begin(folder: Path) -> Process:
        return processes.begin(train_on, table, folder, ranks, leads=True)

    def rows() -> int:
        return (killed / "metrics.jsonl").read_bytes().count(b"\n") if (killed / "metrics.jsonl").is_file() else 0

    first, draw, stopped_at = begin(whole), random.Random(ranks), []
    assert first.wait() == 0, first.stderr
    for least in (1, 7, 13, 20):
        process = begin(killed)
        process.wait_for(lambda least=least: rows() > least)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 0.03))
        os.killpg(process.pid, signal.SIGKILL)  # the ranks and their data workers at once
        assert process.wait() == -signal.SIGKILL
        stopped_at.append(rows())
    last = begin(killed)
    assert last.wait() == 0, last.stderr
    assert len(stopped_at) == 4 and max(stopped_at) < 30, f"a run ended before it was killed: {stopped_at}"
    assert len(losses(whole)) == 30 and losses(killed) == losses(whole)
    for file in ("model.pt", *(f"rank-{k}.pt" for k in range(ranks))):
        one, other = (torch.load(r / "checkpoints/step-000030" / file, weights_only=True) for r in (whole, killed))
        one, other = one.get("buffers", one), other.get("buffers", other)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    if ranks == 2:  # without SyncBatchNorm each rank has statistics of its own, and both came back
        a, b = (torch.load(killed / f"checkpoints/step-000030/rank-{k}.pt", weights_only=True)["buffers"] for k in (0, 1))
        assert any(not torch.equal(a[k], b[k]) for k in a)
    assert not list((killed / "checkpoints").glob(".*.tmp"))
