from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from twinview.engine.metrics import Metrics, read_metrics
from twinview.engine.precision import _cpu_flags, resolve_precision
from twinview.engine.run_folder import differences
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.planning.dry_run import dry_run
from twinview.recipe import from_table, read


def test_the_recipe_of_a_run_is_written_as_resolved_and_reads_back(tiny: dict[str, Any], tmp_path: Path) -> None:
    table = {**tiny, "run": {**tiny["run"], "steps": 1, "precision": "auto"}}
    train(from_table(table), tmp_path / "run")
    written = tomllib.loads((tmp_path / "run/recipe.toml").read_text())
    assert written["run"]["precision"] in ("fp32", "bf16")
    assert written["encoder"] == {"use": "smallnet.encoder", "width": 8, "dropout": 0.1}
    again = read(tmp_path / "run/recipe.toml")
    assert again.run.batch_size == 4 and again.optimizer == from_table(table).optimizer


def test_precision_is_told_by_the_processor(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = from_table({**tiny, "run": {**tiny["run"], "precision": "auto"}})
    for flags, expected in (("fpu sse2 amx_bf16 avx512f", "bf16"), ("fpu avx512_bf16", "bf16"), ("fpu sse2 avx2", "fp32")):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: x\n\nprocessor\t: 1\nflags\t\t: other\n")
        found = _cpu_flags(tmp_path / "cpuinfo")
        assert found == set(flags.split())
        monkeypatch.setattr("twinview.engine.precision._cpu_flags", lambda path, found=found: found)
        assert resolve_precision(recipe, "cpu").run.precision == expected
    assert _cpu_flags(tmp_path / "none") == set()
    assert resolve_precision(from_table(tiny), "cpu").run.precision == "fp32"


def test_recipes_differ_where_it_matters() -> None:
    before = {"run": {"batch_size": 4, "log_every": 1}, "loss": [{"use": "a.b", "weight": 1.0}], "data": {"workers": 0, "mean": [1, 2]}}
    now = {"run": {"batch_size": 8, "log_every": 2, "seed": 1}, "loss": [{"use": "a.b", "weight": 0.5}], "data": {"workers": 4, "mean": (1, 2)}}
    assert list(differences(before, now)) == ["run.batch_size 4 -> 8", "loss.0.weight 1.0 -> 0.5", "run.seed (not there) -> 1"]
    assert not list(differences({"evaluate": [{"use": "a.b"}]}, {"evaluate": [{"use": "c.d", "every": 3}]}))


def test_a_run_of_an_earlier_version_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Its recipe has no word of the keys that came since, of tables and of parts; a key that was written otherwise still stops it."""
    tiny["run"]["steps"] = 2
    train(from_table(tiny), tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints").glob("step-*/meta.json")
    meta = json.loads(path.read_text())
    del meta["recipe"]["data"]["held_out"], meta["recipe"]["run"]["clip_gradients"], meta["recipe"]["encoder"]["dropout"]
    path.write_text(json.dumps(meta))
    assert train(from_table(tiny), tmp_path / "run", resume=True).step == 2
    with pytest.raises(CheckpointError, match=r"began with another recipe: encoder\.dropout 0\.1 -> 0\.2, data\.held_out 0 -> 5, run\.clip_gradients"):
        changed = {**tiny, "encoder": {"use": "smallnet.encoder", "dropout": 0.2}, "data": {**tiny["data"], "held_out": 5}}
        train(from_table({**changed, "run": {**tiny["run"], "clip_gradients": 1.0}}), tmp_path / "run", resume=True)


def test_metrics_have_each_step_once_and_every_bit(tmp_path: Path) -> None:
    path, value = tmp_path / "metrics.jsonl", 0.1 + 0.2
    metrics = Metrics(path, upto=0)
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": value * step, "erank/online": float("nan")})
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [row["loss"] for row in read_metrics(path)] == [value, value * 2, value * 3]
    Metrics(path, upto=2).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    assert next(read_metrics(path))["erank/online"] is None
    assert not list(read_metrics(tmp_path / "none"))


def test_a_dry_run_measures_and_writes_nothing(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    report = dry_run(from_table({**tiny, "deepspeed": {"csv_monitor": {"enabled": True}}}))
    assert sorted(tmp_path.rglob("*")) == before
    assert report.steps == 12 and report.steps_per_epoch == 5 and report.images == 20 and report.micro_batch == 4
    assert report.trained == report.parameters == 3 * 64 * 8 + 8 + 16 + 64 + 8 + 36 + 20
    assert report.memory > 2**25 and report.seconds > 0 and report.images_per_second == pytest.approx(4 / report.seconds)
    assert report.terms["pooled"] == pytest.approx(report.loss)
    assert {name for name, _ in report.items()} == {"device", "images", "parameters", "memory", "step", "run", "loss"}
