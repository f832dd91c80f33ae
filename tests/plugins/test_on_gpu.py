"""On a CUDA device: a run of every method in bf16, and clusters of cells where ranks meet by NCCL."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import every_method as methods
import pytest
import torch
import torch.distributed as dist

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.ops import ranks
from twinview.recipe import from_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_cuda(name: str, shards: str, **run: Any) -> dict[str, Any]:
    table = methods.table(name, shards)
    return {**table, "run": {**table["run"], "device": "cuda", "precision": "bf16", **run}}


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_trains_in_bf16(name: str, class_shards: str, tmp_path: Path) -> None:
    train(from_table(on_cuda(name, class_shards)), tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == methods.STEPS and all(loss == loss for loss in losses)


@pytest.mark.parametrize("name", ["picie", "deepcluster_cells"])
def test_cells_are_clustered_where_ranks_meet_by_nccl(name: str, class_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank, and every sum over ranks goes through the group all the same: NCCL takes no tensor of the CPU."""
    monkeypatch.setattr(ranks, "_several", lambda: dist.is_available() and dist.is_initialized())
    train(from_table(on_cuda(name, class_shards)), tmp_path / "run")
