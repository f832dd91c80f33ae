"""What a run keeps of itself while it trains: cells of the same images, pictures to the monitors; and a run for each seed."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twinview
from twinview.analysis.report.snapshots import read_snapshots
from twinview.cli import main, seeds
from twinview.errors import RecipeError
from twinview.ops.principal import colors_of, principal


@pytest.fixture
def table(toy: dict[str, Any], photo_shards: str) -> dict[str, Any]:
    return {**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "steps": 4, "device": "cpu"}}


def test_a_run_keeps_the_same_images_over_its_training_and_goes_on_doing_so(table: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = twinview.train({**table, "run": {**table["run"], "checkpoint_every": 2}}, run=run)
    kept = read_snapshots(run)
    assert kept is not None and kept.steps == [0, 1, 2, 3, 4] and len(kept.photos) == 6
    assert kept.scores[4].shape == (6, 3, 4, 4) and not torch.equal(kept.scores[0], kept.scores[4])
    assert sum(path.stat().st_size for path in (run / "pictures" / "cells").iterdir()) < 200_000
    assert set(result.metrics) >= {"step", "loss", "lr"} and "<table>" in result._repr_html_()
    for path in (run / "pictures" / "cells").glob("step-00000[34].npz"):
        path.unlink()
    for file in (run / "checkpoints" / "step-000004").iterdir():  # as a kill after the third step would leave it
        file.unlink()
    (run / "checkpoints" / "step-000004").rmdir()
    (run / "checkpoints" / "latest").write_text("step-000002\n")
    twinview.train({**table, "run": {**table["run"], "checkpoint_every": 2}}, run=run, resume=True)
    again = read_snapshots(run)
    assert again is not None and again.steps == kept.steps
    assert torch.allclose(again.scores[4].abs().mean(), kept.scores[4].abs().mean(), atol=0.05)
    (run / "pictures" / "cells" / "step-000002.npz").write_bytes(b"damaged")
    assert 2 not in read_snapshots(run).steps  # type: ignore[union-attr]


def test_the_page_of_a_run_has_its_pictures_and_says_what_it_cannot_draw(table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = twinview.train(table, run=tmp_path / "run").folder
    capsys.readouterr()
    assert main(["show", "run", str(run), "--images", "12"]) == 0
    html = (run / "report.html").read_text()
    for said in ("Curves", "The same images over the training", "Views", "Cells", "Nearest neighbors", "Map of the features", "Recipe", "How it was made"):
        assert f"<h2>{said}</h2>" in html, said
    assert html.count("data:image/jpeg") == 5 and len(html) < 8e6 and "Not drawn" not in html
    assert main(["show", "run", str(run), "data.shards=gone.tar", "--out", str(tmp_path / "page.html")]) == 0
    assert "<h2>Not drawn</h2>" in (tmp_path / "page.html").read_text() and "gone.tar" in capsys.readouterr().err
    for words, said in ((["--out", "page.png"], ".html"), (["--port", "8000"], "--serve"), (["--images", "0"], "above 0")):
        assert main(["show", "run", str(run), *words]) == 2
        assert said in capsys.readouterr().err


def test_tensorboard_and_mlflow_get_numbers_and_pictures(table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server's database wants more packages
    store = (tmp_path / "store").as_uri()
    monitors = {"tensorboard": {"enabled": True}, "mlflow": {"enabled": True, "tracking_uri": store, "experiment": "tests"}}
    twinview.train({**table, "deepspeed": monitors}, run=tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run" / "tensorboard").rglob("events.out*")
    found = EventAccumulator(str(events), size_guidance={"images": 0})
    found.Reload()
    assert [image.step for image in found.Images("cells")] == [0, 1, 2, 3, 4] and "loss" in found.Tags()["scalars"]
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 4 and run.data.params["run.batch_size"] == "4" and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures/cells")][-1].endswith("step-000004.png")
    assert json.loads((tmp_path / "run" / ".mlflow.json").read_text())["run"] == run.info.run_id


def test_wrong_keys_of_mlflow_are_refused(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'tracking_uri'"):
        twinview.train({**table, "deepspeed": {"mlflow": {"enabled": True, "tracking_url": "x"}}}, run=tmp_path / "run")


def test_a_run_for_each_seed(toy: dict[str, Any], photo_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import tomli_w

    recipe = tmp_path / "toy.toml"
    recipe.write_text(tomli_w.dumps({**toy, "data": {"shards": photo_shards, "workers": 0}, "run": {**toy["run"], "steps": 2, "device": "cpu"}}))
    monkeypatch.setattr(seeds, "run_command", lambda command: main(command[3:]))  # in this process
    assert main(["train", str(recipe), "--seeds", "3,4", "--run", str(tmp_path / "runs" / "toy")]) == 0
    out = capsys.readouterr().out
    assert "2 runs, seeds 3, 4 (finished)" in out and "twinview compare" in out
    assert [json.loads((tmp_path / "runs" / f"toy-seed{seed}" / "metrics.jsonl").read_text().splitlines()[-1])["step"] for seed in (3, 4)] == [2, 2]
    with pytest.raises(SystemExit) as end:
        main(["train", str(recipe), "--seeds", "3", "--run", str(tmp_path / "runs" / "toy")])  # is there already
    assert end.value.code == 2


def test_main_directions_keep_their_colors() -> None:
    draws = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 8, 4, 4, generator=draws) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1, 1]).view(1, 8, 1, 1)
    first = principal(cells)
    rows = first.movedim(1, -1).flatten(0, 2)
    assert torch.allclose(rows.T @ rows / len(rows), torch.eye(3), atol=1e-4)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=draws))[0]
    again = principal(torch.einsum("bchw,cd->bdhw", cells, turned) * 3, first)  # the same features in other coordinates
    assert torch.allclose(again, first, atol=1e-3)
    assert colors_of(first).dtype == torch.uint8 and np.ptp(colors_of(first).numpy()) > 150
    assert not principal(torch.ones(1, 4, 2, 2)).any() and not principal(torch.full((1, 4, 2, 2), float("nan"))).any()
