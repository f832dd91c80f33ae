"""The benchmark of every evaluation beside its anchors: its recipes, its corrupted images, its table; and how training further is written down."""
from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinview.recipe import from_table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import evaluations
import transfer
from proof.corrupt import CORRUPTIONS, SEVERITIES, corrupted

KEY = {"kind": "maps", "evaluation": "nearest cells"}


@pytest.mark.parametrize("kind", ["classes", "maps"])
def test_recipes_with_labels_and_without_training_take_the_network_of_the_method(kind: str) -> None:
    task = evaluations.TASK[kind]
    made = {method: evaluations.recipe_of(task, kind, method, 3, Path("shards")) for method in evaluations.METHODS[kind]}
    first = next(iter(made.values()))
    for method, table in made.items():
        from_table(table)
        assert table["encoder"] == first["encoder"] and table["run"]["seed"] == 3, method
    trained = [table["run"]["steps"] for method, table in made.items() if method != "random"]
    assert len(set(trained)) == 1 and made["random"]["run"]["steps"] == 1
    assert made["labels"]["data"]["shards"] == [f"shards/{task.bank}"], "labels of the images that the probes learn from"


def test_corrupted_images_keep_their_classes_and_are_made_once(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    pixels = np.random.default_rng(0).integers(60, 200, (2, 8, 8, 3), np.uint8)
    with tarfile.open(tmp_path / "val" / "0.tar", "w") as tar:
        for n in range(2):
            picture = io.BytesIO()
            Image.fromarray(pixels[n]).save(picture, "PNG")
            for field, content in (("png", picture.getvalue()), ("cls", str(5 + n).encode())):
                info = tarfile.TarInfo(f"{n}.{field}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path = corrupted(tmp_path / "val", (8, 8), tmp_path / "out")
    found = {}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            place = Path(path.format(corruption=name, severity=severity)) / "0.tar"
            with tarfile.open(place) as tar:
                assert [tar.extractfile(m).read() for m in tar if m.name.endswith("cls")] == [b"5", b"6"]  # type: ignore[union-attr]
                member = next(m for m in tar if m.name.endswith("png"))
                found[name, severity] = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())), np.float64)  # type: ignore[union-attr]
    for name in CORRUPTIONS:
        away = [float(np.abs(found[name, severity] - pixels[0]).mean()) for severity in SEVERITIES]
        assert 0 <= away[0] < away[2], name
    before = place.read_bytes()
    assert corrupted(tmp_path / "val", (8, 8), tmp_path / "out") == path and place.read_bytes() == before


def test_the_table_has_means_over_seeds_and_raw_pixels_once() -> None:
    rows = [
        {**KEY, "method": "random", "seed": 20, "scores": {"cells/miou": 20.0, "cells/pixels/miou": 10.0}},
        {**KEY, "method": "multisiam", "seed": 20, "scores": {"cells/miou": 24.0}},
        {**KEY, "method": "multisiam", "seed": 21, "scores": {"cells/miou": 25.0}},
    ]
    assert evaluations.table(rows, "maps")[-1] == "| nearest cells | 10.0 | 20.0 | 24.5 (24.0, 25.0) |  |"


def test_scores_on_the_way_have_their_step_behind() -> None:
    logged = [{"step": 1, "loss": 2.0}, {"step": 2, "score/box/ap": 1.0}, {"step": 4, "loss": 1.0, "score/box/ap": 7.0, "score/box/ap_large": float("nan")}]
    found = transfer.scores(logged)
    assert found["box/ap@2"] == 1.0 and found["box/ap"] == 7.0
    row = {"recipe": "detect/scenes_r18", "overrides": ["run.steps=4"], "weights": "", "seed": 1, "scores": found, "cpu_seconds": 3.0}
    assert transfer.text(row) == "detect/scenes_r18 run.steps=4 from its random start seed 1: box/ap@2 1.0, box/ap 7.0; 3.0 CPU s"
