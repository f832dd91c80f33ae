"""A run that a scheduler moves from 1 rank to 2, to 4 and back to 1."""
from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import Processes

from twinview.engine.distributed.launch import launch
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import Preempted
from twinview.recipe import from_table

SITTINGS = ((1, 2, 3), (2, 1, 6), (4, 3, 9), (1, 0, 0))  # ranks, stage, rows to wait for before SIGTERM goes to the process that started the ranks


def sit(table: dict[str, Any], folder: Path, ranks: int) -> None:
    try:
        launch(ranks, lambda: train(from_table(table), folder, resume="auto"))
    except Preempted:
        raise SystemExit(143) from None


def test_a_run_goes_on_with_1_2_4_and_1_ranks_under_other_stages(tiny: dict[str, Any], tmp_path: Path, processes: Processes) -> None:
    """No step is lost or made twice, and the losses are those of one process that was never stopped."""
    run = {**tiny["run"], "steps": 48, "batch_size": 8, "checkpoint_every": 1000}
    table = {**tiny, "encoder": {"use": "smallnet.encoder", "dropout": 0.0}, "run": run}
    rows = tmp_path / "run/metrics.jsonl"
    for ranks, stage, enough in SITTINGS:
        sitting = processes.begin(sit, {**table, "deepspeed": {"zero_optimization": {"stage": stage}}}, tmp_path / "run", ranks)
        if enough:
            sitting.wait_for(lambda enough=enough: rows.is_file() and rows.read_bytes().count(b"\n") >= enough)  # type: ignore[misc]
            sitting.send_signal(signal.SIGTERM)
        assert sitting.wait() == (143 if enough else 0), sitting.stderr
    sittings = json.loads((tmp_path / "run/manifest.json").read_text())["sittings"]
    assert [s["ranks"] for s in sittings] == [1, 2, 4, 1]
    begun = [s["step"] for s in sittings]
    assert begun[0] == 0 and 3 <= begun[1] < begun[2] < begun[3] < 48
    train(from_table(table), tmp_path / "whole")
    moved, whole = (list(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("run", "whole"))
    assert [row["step"] for row in moved] == list(range(1, 49))
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
