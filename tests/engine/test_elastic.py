"""A run that a scheduler moves from 1 rank to 2, to 4 and back to 1."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table

DRIVER = Path(__file__).with_name("elastic_driver.py")


def test_a_run_goes_on_with_1_2_4_and_1_ranks_under_other_stages(tiny: dict[str, Any], tmp_path: Path) -> None:
    """No step is lost or made twice, and the losses are those of one process that was never stopped."""
    run = {**tiny["run"], "steps": 24, "batch_size": 8, "checkpoint_every": 1000}
    table = {**tiny, "encoder": {"use": "tiny.encoder", "dropout": 0.0}, "run": run}
    (tmp_path / "recipe.json").write_text(json.dumps(table))
    done = subprocess.run([sys.executable, str(DRIVER), str(tmp_path)], capture_output=True, text=True, env=os.environ, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [143, 143, 143, 0]
    sittings = json.loads((tmp_path / "run/manifest.json").read_text())["sittings"]
    assert [s["ranks"] for s in sittings] == [1, 2, 4, 1]
    begun = [s["step"] for s in sittings]
    assert begun[0] == 0 and 4 <= begun[1] < begun[2] < begun[3] < 24
    train(from_table(table), tmp_path / "whole")
    moved, whole = (list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole"))
    assert [row["step"] for row in moved] == list(range(1, 25))
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
