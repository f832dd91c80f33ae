"""Where a run may be stopped, and what may be changed before it goes on: nothing is applied twice, kept for nobody, or refused without a reason."""
from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine.checkpoint import save_checkpoint
from twinview.engine.train import train
from twinview.errors import CheckpointError, Preempted
from twinview.recipe import from_table
from twinview.sample_store import SampleStores

Table = dict[str, Any]
COUNTS = '''
import os, signal
import torch
from torch import nn
from twinview.hooks import hookimpl, part
from twinview.values import Head


class Count(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))


@part
class Counts:
    """Counts the epochs that have begun, and may choose samples; tells its own process to end as the second begins."""

    once: str

    @hookimpl
    def heads(self, dims):
        return {"count": Head(Count(), "state")}

    @hookimpl
    def before_epoch(self, branches, progress):
        branches.online.of(self, "count").epochs += 1
        if progress.epoch == 1 and not os.path.exists(self.once):
            open(self.once, "w").close()
            signal.raise_signal(signal.SIGTERM)

    @hookimpl
    def sample_weights(self, branches):
        return None


@hookimpl
def parts():
    return {"counts": Counts}
'''
SCORES = '''
from twinview.hooks import hookimpl, part


@part
class Scores:
    @hookimpl
    def evaluate(self, progress):
        return {"falls": 75.0 - progress.step, "rises": 10.0 + progress.step}


@hookimpl
def parts():
    return {"scores": Scores}
'''


def with_run(table: Table, **run: Any) -> Table:
    return {**table, "run": {**table["run"], **run}}


def test_an_epoch_that_was_begun_when_the_signal_came_is_not_begun_again(tiny: Table, install: Callable[..., None], tmp_path: Path) -> None:
    install("counts", COUNTS)
    table = {**with_run(tiny, steps=12, checkpoint_every=100), "extra": [{"use": "counts.counts", "once": str(tmp_path / "once")}]}
    with pytest.raises(Preempted, match="saved at step 6"):  # the first step of the second epoch, which has five
        train(from_table(table), tmp_path / "run")
    train(from_table(table), tmp_path / "run", resume="auto")
    weights = torch.load(tmp_path / "run/checkpoints/step-000012/model.pt", weights_only=True)
    assert int(next(value for name, value in weights.items() if name.endswith("epochs"))) == 3


def test_another_score_to_keep_the_best_by_begins_anew(tiny: Table, install: Callable[..., None], tmp_path: Path) -> None:
    install("scores", SCORES)
    table = {**tiny, "evaluate": [{"use": "scores.scores", "every": 3}]}

    def end(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        train(from_table(with_run(table, keep_best="falls")), tmp_path / "run", on_progress=end)
    best = tmp_path / "run/checkpoints/best"
    assert json.loads(best.read_text())["step"] == 3
    train(from_table(with_run(table, keep_best="rises")), tmp_path / "run", resume=True)
    assert json.loads(best.read_text()) == {"checkpoint": "step-000012", "step": 12, "score": 22.0, "name": "rises"}


def test_a_run_killed_before_its_first_checkpoint_takes_a_shorter_way_to_the_next(tiny: Table, tmp_path: Path) -> None:
    def die(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(from_table(with_run(tiny, checkpoint_every=100)), tmp_path / "run", on_progress=die)
    assert train(from_table(with_run(tiny, checkpoint_every=2)), tmp_path / "run", resume="auto").step == 12
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(CheckpointError, match="its checkpoints are gone"):
        train(from_table(with_run(tiny, checkpoint_every=2)), tmp_path / "run", resume="auto")


def test_the_next_save_clears_away_what_a_kill_left(tmp_path: Path) -> None:
    left = tmp_path / ".step-000007.tmp"
    left.mkdir()
    (left / "model.pt").write_bytes(b"half")
    save_checkpoint(tmp_path, torch.nn.Linear(2, 2), {}, {"step": 10}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000010"]


def test_arrays_of_samples_are_kept_for_the_epochs_in_which_checkpoints_stand(tmp_path: Path) -> None:
    stores, standing = SampleStores(4), set[int]()
    stores.keep_in(tmp_path, lambda: standing)

    def kept() -> list[int]:
        return sorted(int(path.stem[-6:]) for path in tmp_path.glob("*.npy"))

    for epoch in range(3):  # no checkpoint yet
        stores.new("clusters/cells", epoch, (1,))
    assert kept() == [0, 1, 2]
    standing |= {1, 3}  # the best, and the newest
    for epoch in (3, 4):
        stores.new("clusters/cells", epoch, (1,))
    assert kept() == [1, 3, 4]
