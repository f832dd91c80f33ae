"""A run goes on in the order of samples that it began with, also one that began before recipes said which."""
from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.recipe import from_table

Table = dict[str, Any]


def ordered(table: Table, order: int | None) -> Any:
    data = table["data"] if order is None else {**table["data"], "order": order}
    return from_table({**table, "data": data})


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def resolved(run: Path) -> int:
    found = tomllib.loads((run / "recipe.toml").read_text())["data"]["order"]
    assert json.loads((run / "checkpoints/step-000012/meta.json").read_text())["recipe"]["data"]["order"] == found
    return int(found)


def test_old_runs_go_on_in_their_old_order(tiny: Table, tmp_path: Path) -> None:
    whole, new = tmp_path / "whole", tmp_path / "new"
    train(ordered(tiny, 1), whole)
    train(ordered(tiny, None), new)
    assert (resolved(whole), resolved(new)) == (1, 2) and losses(whole) != losses(new)
    for run, order in ((whole, 1), (new, 2)):
        half = tmp_path / f"half-{order}"
        shutil.copytree(run, half)
        shutil.rmtree(half / "checkpoints/step-000012")
        (half / "checkpoints/latest").write_text("step-000008")
        if order == 1:  # as an earlier version left it
            meta = json.loads((half / "checkpoints/step-000008/meta.json").read_text())
            del meta["recipe"]["data"]["order"]
            (half / "checkpoints/step-000008/meta.json").write_text(json.dumps(meta))
        with pytest.raises(CheckpointError, match=f"data.order .* -> {3 - order}"):
            train(ordered(tiny, 3 - order), half, resume=True)
        train(ordered(tiny, None), half, resume=True)
        assert losses(half) == losses(run) and resolved(half) == order
