"""Ranks that would train different things are refused before the first step, on every rank, with what differs."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from processes import Processes

from twinview.assembly import assemble
from twinview.data.prepare.pack import pack_images
from twinview.engine import agreement
from twinview.engine.agreement import code
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import gathered
from twinview.engine.train import train
from twinview.recipe import from_table, read


def said(folder: Path, *overrides: str, versions: dict[str, str] | None = None, resume: bool = False) -> str:
    """Rank 1 has these overrides, or these versions; what both say of it."""
    def work() -> list[str]:
        other = dist.get_rank() == 1
        if versions and other:
            setattr(agreement, "versions", lambda: versions)  # noqa: B010
        try:
            train(read(json.loads((folder / "recipe.json").read_text()), overrides if other else ()), folder / "run", resume=resume)
            fault = "trained"
        except Exception as e:
            fault = f"{type(e).__name__}: {e}"
        return gathered(fault)

    began = time.monotonic()
    found = launch(2, work)
    assert time.monotonic() - began < 60
    assert found[0] == found[1], found
    return str(found[0])


def all_said(folder: Path, other: str) -> list[str]:
    return [
        *(said(folder, "run.seed=7"), said(folder, "run.accumulation=2"), said(folder, "encoder.dropout=0.2", "loss.0.channels=5")),
        *(said(folder, f"data.shards={other}"), said(folder, versions={"torch": "1.0", "twinview": "0.0.1"}), said(folder, "data.workers=1")),
    ]


def test_ranks_that_differ_are_refused_with_what_differs(tiny: dict[str, Any], photographs: Path, tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({**tiny, "run": {**tiny["run"], "steps": 2}}))
    other = pack_images(photographs, tmp_path / "other").out
    seed, accumulation, two, data, versions, workers = processes.call(all_said, tmp_path, str(other))
    same = "Give every rank the same recipe file and the same overrides."
    assert seed == f"RecipeError: rank 1 has another recipe: run.seed is 7, and 0 on rank 0. {same}"
    assert accumulation.startswith("RecipeError: rank 1 has another recipe: run.accumulation is 2, and 1 on rank 0.")
    assert "encoder.dropout is 0.2, and 0.1 on rank 0" in two and "loss.0.channels is 5, and 4 on rank 0" in two
    assert data.startswith("RecipeError: rank 1 has another data: [data] samples is ") and "Copy the same shards to every machine" in data
    assert "rank 1 has another code: " in versions and "twinview is 0.0.1 (" in versions and versions.endswith("Install the same everywhere.")
    assert workers == "trained"  # how many workers a rank has changes nothing


def test_code_is_told_apart_by_its_source(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Checkouts of two commits have one version."""
    first = code(assemble(from_table(tiny)))
    assert first == code(assemble(from_table(tiny))) and {"python", "torch", "twinview", "method smallnet"} <= first.keys()
    (tmp_path / "site" / "twinview_smallnet.py").open("a").write("# a change\n")
    assert {k for k, v in code(assemble(from_table(tiny))).items() if v != first[k]} == {"method smallnet"}
