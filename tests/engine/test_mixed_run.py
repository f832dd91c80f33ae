"""Runs of several sources: resumed exactly, refused with other weights, scored on what they never saw."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from twinview.analysis.evaluate import evaluate, evaluation_recipe
from twinview.analysis.targets import find_target
from twinview.assembly import assemble
from twinview.cli import main
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.planning.dry_run import dry_run
from twinview.recipe import from_table

SEEN = '''
from twinview.hooks import hookimpl, part

KEYS = set()  # of the process: a part holds no state


@part
class Seen:
    """Counts the samples of `val` that no step had, and those that one had."""

    val: str | None = None

    @hookimpl
    def after_step(self, step):
        KEYS.update(step.batch.keys)

    @hookimpl
    def evaluate(self, data):
        read = {key for batch in data.plain(self.val, size=(8, 8)) for key in batch.keys}
        return {"read": len(read), "trained": len(read & KEYS)}


@hookimpl
def parts():
    return {"seen": Seen}
'''


@pytest.fixture
def mixed(
    tiny: dict[str, Any], install: Callable[..., None], images: Path, photo_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """20 pictures and 12 photographs, half and half; 6 of the 32 held out."""
    install("seen", SEEN)
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    sources = [{"name": "pictures", "shards": str(images), "weight": 1}, {"name": "photos", "shards": photo_shards, "weight": 1}]
    evaluations = [{"use": "seen.seen", "name": "held", "val": "held-out"}, {"use": "seen.seen", "name": "own"}]
    return {**tiny, "data": {"source": sources, "held_out": 6, "workers": 0}, "evaluate": evaluations}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def test_a_mixed_run_resumes_exactly_and_is_scored_on_what_it_never_saw(mixed: dict[str, Any], tmp_path: Path) -> None:
    result = train(from_table(mixed), tmp_path / "whole")
    assert result.scores == {"held.read": 6, "held.trained": 0, "own.read": 26, "own.trained": 26}
    about = json.loads((tmp_path / "whole/manifest.json").read_text())["data"]
    assert [(s["name"], s["samples"], s["share"]) for s in about["sources"]] == [("pictures", 20, 0.5), ("photos", 12, 0.5)]
    assert (about["images"], about["held_out"]) == (26, 6)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 7:  # in the middle of the second epoch, three steps behind a checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(from_table(mixed), tmp_path / "cut", on_progress=interrupt)
    moved = tmp_path / "elsewhere"
    shutil.copytree(mixed["data"]["source"][0]["shards"], moved)
    mixed["data"]["source"][0]["shards"] = str(moved)
    train(from_table(mixed), tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "cut")) == 12
    target = find_target(str(tmp_path / "cut"))
    for what, shards in (("held", None), ("own", "held-out")):
        assert evaluate(assemble(evaluation_recipe(target.recipe(), what, shards, {})), target).scores == {"read": 6, "trained": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 2}, "data.source.0.weight 1.0 -> 2.0"),
        ({"subset": 0.5}, "data.source.0.subset 1.0 -> 0.5"),
        ({"shards": "images:"}, "the run began with other shards. Name the same in [data]"),
    ],
)
def test_a_run_does_not_go_on_with_other_sources(
    mixed: dict[str, Any], tmp_path: Path, photographs: Path, change: dict[str, Any], said: str
) -> None:
    train(from_table({**mixed, "run": {**mixed["run"], "steps": 1}, "evaluate": []}), tmp_path / "run")
    change = {key: f"images:{photographs}" if value == "images:" else value for key, value in change.items()}
    sources = [{**mixed["data"]["source"][0], **change}, mixed["data"]["source"][1]]
    other = {**mixed, "data": {**mixed["data"], "source": sources}, "run": {**mixed["run"], "steps": 1}, "evaluate": []}
    with pytest.raises(CheckpointError) as caught:
        train(from_table(other), tmp_path / "run", resume=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_dry_run_and_a_check_name_the_sources(mixed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [f"{name} {value}" for name, value in dry_run(from_table(mixed)).items()]
    assert any(line.startswith("source photos: ") and line.endswith(" of 12 images, 50.0% of an epoch") for line in found)
    assert "held out 6 images" in found
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(mixed))
    assert main(["check", str(tmp_path / "mine.toml"), "data.source.0.weight=3", "data.source.1.subset=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "#   pictures        75.0% of an epoch: " in printed and "#   photos          25.0% of an epoch, a subset of 0.5: " in printed
    assert "#   held out        6 samples" in printed and "[[data.source]]" in printed
