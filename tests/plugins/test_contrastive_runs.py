"""Contrastive methods in whole runs: trained, cut short and resumed with another number of workers, to the last bit; queues and banks too."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table

BEFORE = {"momentum": 0.9, "schedule": "constant", "update": "before_forward"}
CROPS: dict[str, Any] = {"use": "byol.crops", "size": 32}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"loss": [{"use": "simclr.image", "channels": 4, "hidden": 8}], "target": {"momentum": 0.0}, "run": {"views_together": True}},
    "moco": {"loss": [{"use": "moco.image", "channels": 4, "queue": 8}], "target": BEFORE, "views": {**CROPS, "pairs": "one_way"}, "run": {"accumulation": 2}},
    "moco_v3": {"loss": [{"use": "moco_v3.image", "channels": 4, "hidden": 8}], "target": BEFORE},
    "instdist": {"loss": [{"use": "instdist.image", "channels": 4, "negatives": 8}], "target": {"momentum": 0.0}, "views": {**CROPS, "views": 1}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_goes_on_to_the_last_bit(method: str, toy: dict[str, Any], photo_shards: str, tmp_path: Path) -> None:
    own = METHODS[method]
    run = {**toy["run"], "steps": 6, "checkpoint_every": 2, "keep": 10, "device": "cpu", **own.get("run", {})}
    table = {**toy, "views": CROPS, "augment": {"use": "byol.photometry"}, **own, "data": {"shards": photo_shards, "workers": 0}, "run": run}
    train(from_table(table), tmp_path / "whole")

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(from_table(table), tmp_path / "cut", on_progress=interrupt)
    train(from_table({**table, "data": {"shards": photo_shards, "workers": 2}}), tmp_path / "cut", resume=True)
    rows = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == 6 and all(loss == loss for loss in rows[0])
    states = [torch.load(tmp_path / name / "checkpoints/step-000006/model.pt", weights_only=True) for name in ("whole", "cut")]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    first = torch.load(tmp_path / "whole/checkpoints/step-000002/model.pt", weights_only=True)
    moved = [k for k in first if "state." in k and not torch.equal(first[k], states[0][k])]
    assert bool(moved) == (method in ("moco", "instdist"))
