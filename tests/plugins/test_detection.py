"""Detection: objects from annotations and from label maps, every neck on the engine, and AP beside pycocotools' own files."""
from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.api import train
from twinview.errors import DataError, RecipeError
from twinview_detection import parts
from twinview_detection.objects import Kinds, pieces


def test_pieces_of_a_label_map() -> None:
    labels = torch.zeros(20, 30, dtype=torch.int64)
    labels[2:6, 3:9] = 8
    labels[6, 9] = 8  # joined at a corner
    labels[10:15, 20:28] = 9
    labels[18, 1] = 8  # too small
    found = pieces(labels, Kinds(maps=True, numbers=(9, 8), least=4))
    assert found["boxes"].tolist() == [[20, 10, 28, 15], [3, 2, 10, 7]] and found["labels"].tolist() == [1, 2]
    assert found["masks"].sum((1, 2)).tolist() == [40, 25] and not found["crowd"].any()
    none = pieces(labels, Kinds(maps=True, numbers=(5,), least=4))
    assert none["boxes"].shape == (0, 4) and none["masks"].shape == (0, 20, 30)


BOX = [10, 8, 12, 10]  # x, y, width, height


def coco(root: Path, change: dict[str, Any] | None = None, count: int = 8) -> str:
    """Packed images of 40x48 with a bright box each, as polygon, run lengths or box alone."""
    from twinview.data.prepare.pack import pack
    from twinview.data.writing.writer import Options

    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for i in range(count):
        x, y, w, h = BOX[0] + i, BOX[1] + i // 2, BOX[2], BOX[3]
        pixels = np.random.default_rng(i).integers(0, 90, (40, 48, 3), dtype=np.uint8)
        pixels[y : y + h, x : x + w] += 130
        Image.fromarray(pixels).save(root / "train" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 48})
        mask = np.zeros((40, 48), np.uint8)
        mask[y : y + h, x : x + w] = 1
        flat = np.concatenate([[0], mask.T.ravel(), [2]])
        runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
        shapes: list[Any] = [[[x, y, x + w, y, x + w, y + h, x, y + h]], {"size": [40, 48], "counts": runs}, None]
        one = {"id": i, "image_id": i, "category_id": 7, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        annotations.append({**one, **({"segmentation": shapes[i % 3]} if shapes[i % 3] is not None else {}), **(change or {})})
    (root / "annotations" / "instances_train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "box"}]})
    )
    pack("coco", str(root), root / "shards", Options(), split="train")
    return str(root / "shards")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return coco(tmp_path_factory.mktemp("coco") / "boxes")


def recipe(shards: str, **loss: Any) -> dict[str, Any]:
    small = {"width": 16, "hidden": 32, "proposals": 60, "samples": 32, "anchor": 8, "classes": [7], "least_score": 0.0}
    return {
        "views": {"use": "finetune.scaled_crops", "size": [40, 48], "base": [40, 48], "scale": [1.0, 1.3]},
        "encoder": {"use": "torchvision.resnet", "name": "resnet18", "width": 8},
        "loss": [{"use": "detection.rcnn", **small, **loss}],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 2e-3},
        "run": {"steps": 3, "batch_size": 4, "log_every": 1, "device": "cpu"},
        "evaluate": [{"use": "detection.ap", "val": shards, "size": [40, 48]}],
    }


VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 16, "depth": 1, "heads": 2, "img_size": 32}


@pytest.mark.parametrize(("loss", "encoder"), [({}, None), ({"neck": "c4"}, None), ({"neck": "simple"}, VIT), ({"masks": False}, None)], ids=["fpn", "c4", "simple", "boxes"])
def test_every_neck_trains_and_is_scored(loss: dict[str, Any], encoder: dict[str, Any] | None, boxes: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    table = recipe(boxes, **loss)
    table["encoder"] = encoder or table["encoder"]
    result = train(table, run=tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    terms = {"objectness", "rpn_box", "class", "box", *([] if "masks" in loss else ["mask"])}
    assert {name.removeprefix("loss/") for name in row if name.startswith("loss/")} == terms and math.isfinite(row["loss"])
    kinds = {"box"} if "masks" in loss else {"box", "mask"}
    assert {name.partition("/")[0] for name in result.scores} == kinds and 0 <= result.scores["box/ap"] <= 100
    if loss.get("neck") == "c4":
        saved = torch.load(result.checkpoint / "model.pt", weights_only=True)
        assert not [name for name in saved if "box_head" in name or "mask_head" in name], "the encoder's stage is not the head's"


def test_objects_of_views_are_where_their_pixels_are(boxes: str) -> None:
    from twinview.assembly import assemble
    from twinview.data.dataset.open import open_data
    from twinview.data.loading.loader import training_batches
    from twinview.model import make_model
    from twinview.recipe import from_table

    table = recipe(boxes)
    table["views"]["scale"] = [1.0, 2.0]
    made = from_table(table)
    shards = open_data(made.data)
    dims = make_model(assemble(made), len(shards)).dims
    assert dims.wants == ("objects",)
    seen = 0
    for batch in training_batches(made, dims, shards, rank=0, world=1, steps=8):
        for image, box, mask, kind in zip(batch.images[0], *(batch.labels[f"objects/0/{name}"] for name in ("boxes", "masks", "classes"))):
            bright = image.float().mean(0) > 120
            if kind[0] == 7 and bright.sum() > 30:
                overlap = (bright & mask[0]).sum() / (bright | mask[0]).sum()
                rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
                found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert overlap > 0.7 and (found - box[0]).abs().max() <= 2, (overlap, found, box)
                seen += 1
    assert seen > 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [40, 8, 12, 10]}, "has a box [40, 8, 12, 10] (x, y, width, height) outside of its image of 48x40. Were images shrunk"),
        ({"bbox": "none"}, "has an annotation without bbox = [x, y, width, height] and category_id"),
        ({"category_id": 9}, "an annotation has category 9, and categories are [7]. Add it."),
        ({"segmentation": {"size": [4, 4], "counts": [3, 13]}}, "has run lengths of another size than its image"),
    ],
)
def test_annotations_that_do_not_fit_are_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    table = recipe(coco(tmp_path / "wrong", change, count=4))
    with pytest.raises(DataError) as error:
        train({**table, "evaluate": []}, run=tmp_path / "run")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_other_mistakes(boxes: str, photo_shards: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no annotations \\(field json"):
        train({**recipe(photo_shards), "evaluate": []}, run=tmp_path / "none")
    table = recipe(boxes)
    table["encoder"] = {**VIT, "maps": [1]}
    with pytest.raises(RecipeError, match=r'neck: "fpn" wants c2, which the encoder does not give. Write neck = "simple"'):
        train({**table, "evaluate": []}, run=tmp_path / "vit")
    with pytest.raises(ValueError, match="classes wants different numbers"):
        parts()["rcnn"](classes=[1, 1])


def test_ap_is_what_pycocotools_says_of_the_same_boxes_in_files(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools import mask as runs
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from twinview_detection.ap import MEASURES, Table, average_precision

    rng = np.random.default_rng(0)
    real, given = Table((64, 80), torch.device("cpu")), Table((64, 80), torch.device("cpu"))
    files: dict[str, list[Any]] = {"images": [{"id": i, "height": 64, "width": 80} for i in range(6)], "categories": [{"id": 1}, {"id": 2}], "annotations": []}
    answers = []
    for i in range(6):
        for n in range(3):
            x, y, w, h = (int(rng.integers(low, high)) for low, high in ((0, 30), (0, 20), (8, 40), (8, 40)))
            for table, shift in ((real, 0), (given, int(rng.integers(0, 5)))):
                x0, y0, x1, y1 = x + shift, y, min(x + shift + w, 80), min(y + h, 64)
                mask = np.zeros((1, 64, 80), bool)
                mask[0, y0:y1, x0:x1] = True
                score, label = float(rng.random()), 1 + n % 2
                table.add(i, torch.tensor([[x0, y0, x1, y1]]), torch.tensor([label]), torch.tensor([score if table is given else 0.0]), torch.from_numpy(mask))
                packed = runs.encode(np.asfortranarray(mask[0].astype(np.uint8)))
                one = {"image_id": i, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": {**packed, "counts": packed["counts"].decode()}}
                if table is real:
                    files["annotations"].append({**one, "id": len(files["annotations"]) + 1, "iscrowd": 0, "area": (x1 - x0) * (y1 - y0)})
                else:
                    answers.append({**one, "score": score})
    real.gather()
    given.gather()
    (tmp_path / "real.json").write_text(json.dumps(files))
    (tmp_path / "given.json").write_text(json.dumps(answers))
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "real.json"))
            theirs = COCOeval(truth, truth.loadRes(str(tmp_path / "given.json")), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        ours = average_precision(real, given, 2, kind, name)
        for measure, number in zip(MEASURES, theirs.stats):
            found = ours[f"{name}/{measure}"]
            assert (math.isnan(found) and number == -1) or found == pytest.approx(100 * number, abs=1e-9), (measure, found, number)
        assert 5 < ours[f"{name}/ap"] < 95


def test_the_recipe_comes_from_a_plugin_of_anyone(install: Callable[..., None], boxes: str, tmp_path: Path) -> None:
    """A stranger's head needs the hooks alone: it takes the objects that every view has."""
    install("strange", STRANGE)
    table = recipe(boxes)
    table |= {"loss": [{"use": "strange.center"}], "evaluate": [{"use": "strange.distance", "val": boxes}]}
    assert train(table, run=tmp_path / "run").scores["distance/pixels"] < 60


STRANGE = '''
import torch
from torch import nn
from twinview import hookimpl, part
from twinview.values import Head, Traits


@part
class Center:
    @hookimpl
    def traits(self):
        return Traits(needs=frozenset({"objects", "pooled"}))

    @hookimpl
    def heads(self, dims):
        return {"center": Head(nn.Linear(dims.width("pooled"), 2), "online_only")}

    @hookimpl
    def loss(self, step):
        boxes = step.batch.labels["objects/0/boxes"][:, 0]
        found = step.apply(step.head(self, "center"), 0, "online", on="pooled")
        return {"center": (found - (boxes[:, :2] + boxes[:, 2:]) / 2).square().mean() / 1000}


@part
class Distance:
    val: str

    @hookimpl
    def evaluate(self, branches, data):
        head, gaps = branches.online.find(branches.online.key("strange.center", "center")), []
        for batch in data.plain(self.val, size=(40, 48), labels=("objects",)):
            boxes = batch.labels["objects/boxes"][:, 0]
            gaps.append((head(branches.online.encoder(batch.images).pooled) - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=1))
        return {"distance/pixels": float(torch.cat(gaps).mean())}


@hookimpl
def parts():
    return {"center": Center, "distance": Distance}
'''
