"""Runs of PiCIE: labels that survive a kill beside the checkpoints, workers, ranks, and what is refused."""
from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinview import check, train
from twinview.errors import CheckpointError, TwinviewError
from twinview.ops.cross_entropy import balanced_weights, class_weighted_cross_entropy


def recipe(shards: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy({
        "views": {"use": "densesiam.crop_and_whole", "size": [32, 32]},
        "augment": {"use": "byol.photometry"},
        "encoder": {"use": "timm.encoder", "name": "test_resnet"},
        "align": {"use": "densesiam.grid_sample"},
        "head": [{"use": "picie.centroids", "name": "clusters", "clusters": 3}],
        "loss": [{"use": "picie.clusters", "head": "clusters", "clusters": 3, "auxiliary": 4, "initial": 8, "iterations": 3}],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": 8, "batch_size": 4, "device": "cpu", "log_every": 1, "checkpoint_every": 4, "keep": 3},
        **changes,
    })


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def back_to(run: Path, step: int) -> None:
    """As a kill some steps behind a checkpoint leaves it."""
    for path in run.glob("checkpoints/step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (run / "checkpoints" / "latest").write_text(f"step-{step:06d}\n")


def test_a_run_killed_within_an_epoch_goes_on_bit_for_bit_with_the_labels_it_had(tmp_path: Path, photo_shards: str) -> None:
    whole = train(recipe(photo_shards), run=tmp_path / "run")  # three steps an epoch: step 4 lies in the second
    expected = losses(tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert kept == [f"picie.clusters.cells-epoch-{e:06d}.npy" for e in (1, 2)]  # the oldest checkpoint stands in epoch 1
    inside = torch.load(whole.checkpoint / "model.pt", weights_only=True)
    assert sum(v.numel() for k, v in inside.items() if k.startswith("state.")) < 3000
    back_to(tmp_path / "run", 4)
    train(recipe(photo_shards), "data.workers=2", run=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == expected
    back_to(tmp_path / "run", 4)
    (tmp_path / "run" / "samples" / "picie.clusters.cells-epoch-000001.npy").unlink()
    with pytest.raises(CheckpointError, match=r"cells-epoch-000001.npy: is missing or damaged: what epoch 1 began with"):
        train(recipe(photo_shards), run=tmp_path / "run", resume=True)
    samples = tmp_path / "run" / "samples"
    (samples / "picie.clusters.labels-epoch-000001.npy").write_bytes((samples / "picie.clusters.cells-epoch-000002.npy").read_bytes())
    with pytest.raises(CheckpointError, match="the labels of epoch 1 are an earlier version's, by sample, which mixed up the crops of one"):
        train(recipe(photo_shards), run=tmp_path / "run", resume=True)


def test_what_it_needs_is_refused_in_one_line(tmp_path: Path, photo_shards: str) -> None:
    table = recipe(photo_shards)
    table["head"][0]["clusters"] = 5
    with pytest.raises(TwinviewError, match=r"picie.clusters.head: 'clusters' has not 3 clusters. Write \[\[head\]\] use"):
        train(table, run=tmp_path / "head")
    table = recipe(photo_shards, views={"use": "byol.crops", "views": 1, "size": 32})
    with pytest.raises(TwinviewError, match="clusters two views of an image, and .views. pairs none"):
        train(table, run=tmp_path / "view")
    table = recipe(photo_shards)
    table["loss"][0]["auxiliary"] = 300
    with pytest.raises(TwinviewError, match="from 2 to 255"):
        check(table)


def test_more_clusters_than_cells_is_refused(tmp_path: Path, photo_shards: str) -> None:
    table = recipe(photo_shards)
    table["loss"][0] |= {"auxiliary": 200, "initial": 4}
    with pytest.raises(TwinviewError, match="points for 200 clusters. Write fewer clusters"):
        train(table, run=tmp_path / "run")


def test_the_weighted_cross_entropy_is_torch_s() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 5, 3, 4), torch.randint(-1, 5, (2, 3, 4)), torch.rand(5)
    expected = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=-1)
    assert torch.allclose(class_weighted_cross_entropy(logits, labels, weights), expected)


def test_the_weights_of_two_clusterings_make_them_start_equal() -> None:
    main, other = balanced_weights(27, 100)
    assert main == pytest.approx(0.582859, abs=1e-6) and other == pytest.approx(0.417141, abs=1e-6)
    assert main * np.log(27) == pytest.approx(other * np.log(100))
