"""kill -9 at any moment: what is left is usable, and the losses go on as if nothing had happened."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine.metrics import read_metrics

DRIVER = Path(__file__).with_name("kill_driver.py")


def losses(run: Path) -> list[float]:
    rows = list(read_metrics(run / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_goes_on_to_the_last_bit(tiny: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    """30 steps, 5 an epoch, a checkpoint every 3, 2 accumulated micro-batches, 2 data workers; killed four times, wherever it is."""
    run = {**tiny["run"], "steps": 30, "batch_size": 4, "accumulation": 2, "checkpoint_every": 3}
    table = {**tiny, "data": {**tiny["data"], "workers": 2}, "run": run}
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(ranks)], capture_output=True, text=True, env=os.environ, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    stopped_at = json.loads(done.stdout.splitlines()[-1])
    assert len(stopped_at) == 4 and max(stopped_at) < 30, f"a run ended before it was killed: {stopped_at}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert len(losses(whole)) == 30 and losses(killed) == losses(whole)
    for file in ("model.pt", *(f"rank-{k}.pt" for k in range(ranks))):
        one, other = (torch.load(r / "checkpoints/step-000030" / file, weights_only=True) for r in (whole, killed))
        one, other = one.get("buffers", one), other.get("buffers", other)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    if ranks == 2:  # without SyncBatchNorm each rank has statistics of its own, and both came back
        a, b = (torch.load(killed / f"checkpoints/step-000030/rank-{k}.pt", weights_only=True)["buffers"] for k in (0, 1))
        assert any(not torch.equal(a[k], b[k]) for k in a)
    assert not list((killed / "checkpoints").glob(".*.tmp"))
