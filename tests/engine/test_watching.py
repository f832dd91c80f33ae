"""What a run tells while it goes on."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinview.engine.collapse import ALARM, CollapseWatch
from twinview.engine.deepspeed_config import check_recipe
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import RecipeError
from twinview.recipe import from_table

Table = dict[str, Any]
SLOW = '''
import time
import torch
from twinview.hooks import hookimpl, part


@part
class Views:
    """The toy method's views, after a while."""

    seconds: float = 0.0

    @hookimpl(wrapper=True)
    def sample_views(self):
        time.sleep(self.seconds)
        return (yield)


@part
class Loss:
    """A loss that takes its time."""

    seconds: float = 0.0

    @hookimpl
    def loss(self, step):
        time.sleep(self.seconds)
        return {"nothing": torch.zeros(())}


@part
class Same:
    """All images have nearly one feature."""

    @hookimpl(wrapper=True)
    def encode(self):
        found = yield
        middle = found.pooled.mean(0)
        return found._replace(pooled=middle + 0.001 * (found.pooled - middle))


@hookimpl
def parts():
    return {"views": Views, "loss": Loss, "same": Same}
'''
WANDB = '''
"""A stand-in for W&B: writes down what it is given, and drops what comes with a lower step than before, as W&B does."""
import json, pathlib
_step = 0


def init(**settings):
    print(json.dumps({"init": settings}), file=_file())


def log(data, step=None, commit=None):
    global _step
    if step >= _step:
        _step = step
        print(json.dumps({"step": step, **data}), file=_file())


def _file():
    return pathlib.Path(__file__).with_name("wandb.jsonl").open("a")
'''


def rows(run: Path) -> list[dict[str, Any]]:
    return list(read_metrics(run / "metrics.jsonl"))


@pytest.fixture
def slow(tiny: Table, install: Callable[..., None]) -> Callable[..., Table]:
    install("slow", SLOW)

    def recipe(views: float = 0.0, loss: float = 0.0, workers: int = 0, **run: Any) -> Table:
        return {
            **tiny,
            "extra": [{"use": "slow.views", "seconds": views}],
            "loss": [{"use": "toy.pooled"}, {"use": "slow.loss", "seconds": loss}],
            "data": {**tiny["data"], "workers": workers},
            "run": {**tiny["run"], **run},
        }

    return recipe


@pytest.mark.parametrize("workers", [0, 1])
def test_the_share_of_waiting_for_data(slow: Callable[..., Table], tmp_path: Path, workers: int) -> None:
    """Four images of 30 ms each starve the step; behind a step of 100 ms a worker has the next batch ready, and nobody waits."""
    train(from_table(slow(views=0.03, workers=workers, steps=6)), tmp_path / "starved")
    train(from_table(slow(loss=0.1, workers=workers, steps=6)), tmp_path / "fed")
    starved, fed = ([row["data_wait"] for row in rows(tmp_path / name)[2:]] for name in ("starved", "fed"))
    assert min(starved) > 0.5 and max(fed) < 0.4
    assert all(0 <= row["data_wait"] <= 1 for name in ("starved", "fed") for row in rows(tmp_path / name))


def test_memory_is_the_peak_of_this_process(tiny: Table, tmp_path: Path) -> None:
    train(from_table({**tiny, "run": {**tiny["run"], "steps": 3}}), tmp_path / "run")
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    told = [row["memory_gb"] for row in rows(tmp_path / "run")]
    assert told == sorted(told) and told[-1] == pytest.approx(peak * 1024 / 1e9, rel=0.05)


def test_features_that_collapse_are_told_once_while_the_run_goes_on(
    slow: Callable[..., Table], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = slow(steps=12, log_every=2)
    result = train(from_table({**table, "extra": [{"use": "slow.same"}]}), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert len(result.collapsed) == 1 and len(said) == 1 and ALARM == 3
    assert said[0].startswith("WARNING step 4: features of different images are all but equal (spread 0.00")  # rows 1, 2, 4
    train(from_table(table), tmp_path / "well")
    assert "WARNING" not in capsys.readouterr().err


def test_one_odd_row_is_no_alarm() -> None:
    watch = CollapseWatch()
    told = [watch.see({"step": step, "spread/online": spread}) for step, spread in enumerate([0.01, 0.01, 0.3, 0.01, 0.01, 0.01, 0.01, 0.5])]
    assert [bool(line) for line in told] == [False] * 5 + [True, False, False]
    watch = CollapseWatch()
    lines = [watch.see({"step": step, "spread/online": 0.5, "erank/online": 1.1, "score/x/collapsed": 0.0}) for step in range(4)]
    assert lines[2] == "WARNING step 2: features of different images differ along one line alone (effective rank 1.10), in 3 logged rows running. " + (
        "The run may have collapsed."
    )
    assert lines[3] == "" and not watch.see({"step": 9, "spread/online": None, "erank/online": None})


def test_monitors_get_the_rows(tiny: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard, CSV and W&B, each the numbers of metrics.jsonl by the same steps, and nothing else."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    tables = {"csv_monitor": {"enabled": True}, "tensorboard": {"enabled": True}, "wandb": {"enabled": True, "group": "mine"}}
    train(from_table({**tiny, "deepspeed": tables, "run": {**tiny["run"], "steps": 3}}), tmp_path / "run")
    logged = rows(tmp_path / "run")
    names = logged[0].keys() - {"step", "epoch"}
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == names
    begun, *told = [json.loads(line) for line in (tmp_path / "fake/wandb.jsonl").read_text().splitlines()]
    assert begun == {"init": {"project": "twinview", "group": "mine", "entity": None}}
    for name in names:
        expected = [(row["step"], row[name]) for row in logged]
        lines = (tmp_path / f"run/csv_monitor/{name.replace('/', '_')}.csv").read_text().split()
        assert [(int(line.split(",")[0]), float(line.split(",")[1])) for line in lines[1:]] == expected, name
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected], name
        assert [(one["step"], one[name]) for one in told if name in one] == expected, name


def test_a_monitor_that_is_not_installed_is_refused(tiny: Table) -> None:
    with pytest.raises(RecipeError, match=r"^\[deepspeed\] comet\.enabled: comet_ml is not installed\. Install it: pip install comet-ml$"):
        check_recipe(from_table({**tiny, "deepspeed": {"comet": {"enabled": True}}}))
