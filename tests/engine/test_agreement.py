"""Ranks that would train different things are refused before the first step, on every rank, with what differs."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from twinview.assembly import assemble
from twinview.data.prepare.pack import pack_images
from twinview.engine.agreement import code
from twinview.recipe import from_table

START = """
import copy, json, os, sys, time
import torch.distributed as dist
from pathlib import Path
from twinview.engine import agreement
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import gathered
from twinview.engine.train import train
from twinview.recipe import read

table, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])

def said(*overrides, versions=None, resume=False):
    # Rank 1 has these overrides, or these versions; what each rank says of it.
    def work():
        other = dist.get_rank() == 1
        if versions and other:
            agreement.versions = lambda: versions
        try:
            train(read(table, overrides if other else ()), folder, resume=resume)
            fault = "trained"
        except Exception as e:
            fault = f"{type(e).__name__}: {e}"
        return gathered(fault)
    began = time.monotonic()
    found = launch(2, work)
    assert time.monotonic() - began < 60
    assert found[0] == found[1], found
    return found[0]
"""


def test_ranks_that_differ_are_refused_with_what_differs(tiny: dict[str, Any], photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({**tiny, "run": {**tiny["run"], "steps": 2}}))
    other = pack_images(photographs, tmp_path / "other").out
    work = textwrap.dedent(f"""
        found = [
            said("run.seed=7"), said("run.accumulation=2"), said("encoder.dropout=0.2", "loss.0.channels=5"), said("data.shards={other}"),
            said(versions={{"torch": "1.0", "twinview": "0.0.1"}}), said("data.workers=1"),
        ]
        print(json.dumps(found))
    """)
    done = subprocess.run(
        [sys.executable, "-c", START + work, str(tmp_path / "recipe.json"), str(tmp_path / "run")],
        capture_output=True, text=True, env=os.environ, timeout=200, check=False,
    )
    assert done.returncode == 0, done.stderr
    seed, accumulation, two, data, versions, workers = json.loads(done.stdout.splitlines()[-1])
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
    assert first == code(assemble(from_table(tiny))) and {"python", "torch", "twinview", "method tiny"} <= first.keys()
    (tmp_path / "site" / "twinview_tiny.py").open("a").write("# a change\n")
    assert {k for k, v in code(assemble(from_table(tiny))).items() if v != first[k]} == {"method tiny"}
