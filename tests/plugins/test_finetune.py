"""Fine-tuning and probes on the engine: rates by depth, mixing, frozen encoders, and a run that learns, stops and goes on."""
from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.api import train
from twinview.cli import main
from twinview.engine.optimizer import make_optimizer
from twinview.engine.setup import build
from twinview.errors import DataError, RecipeError
from twinview.recipe import read
from twinview.values import Geometry
from twinview_finetune import parts
from twinview_finetune.mixing import Mixing, drawn_from, erased, mixed, smoothed, targets
from twinview_finetune.segmentation import NONE, truth_of
from twinview_timm import Encoder


def test_rates_of_all_parameters_of_a_vit() -> None:
    net = Encoder(name="vit_base_patch16_224", width=24, heads=2, patch=8, img_size=16).make_encoder(masked=False, channels=3)
    layers: Any = parts()["layers"](decay=0.65, blocks=12)
    groups: dict[tuple[int, bool], list[str]] = {}
    names = [(f"encoder.{name}", p) for name, p in net.named_parameters()]
    assert layers.param_groups(name="heads.finetune/classes/classifier.layer.weight", parameter=torch.zeros(3, 24)) is None
    for name, parameter in names:
        rule = layers.param_groups(name=name, parameter=parameter)
        layer = layers.layer(name)
        assert rule.lr_scale == pytest.approx(0.65 ** (13 - layer)) and not rule.frozen
        groups.setdefault((layer, rule.weight_decay is None), []).append(name)
    assert sum(map(len, groups.values())) == len(names) and {layer for layer, _ in groups} == set(range(14))
    assert groups[0, False] == ["encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.bias"]
    assert all(name.startswith("encoder.blocks.3.") for some in (True, False) for name in groups[4, some])
    assert layers.param_groups(name="encoder.blocks.0.mlp.fc1.weight", parameter=torch.zeros(2, 2)).lr_scale == pytest.approx(0.65**12)
    assert layers.param_groups(name="encoder.blocks.11.mlp.fc1.weight", parameter=torch.zeros(2, 2)).lr_scale == pytest.approx(0.65)
    with pytest.raises(RecipeError, match="blocks: 11, and the encoder has encoder.blocks.11"):
        parts()["layers"](blocks=11).param_groups(name="encoder.blocks.11.norm1.weight", parameter=torch.zeros(2))
    resnet: Any = parts()["layers"](blocks=4, frozen=2)
    assert [resnet.layer(f"encoder.{n}.weight") for n in ("conv1", "bn1", "layer1.0.conv1", "layer4.1.bn2")] == [0, 0, 1, 4]
    assert resnet.param_groups(name="encoder.layer1.0.conv1.weight", parameter=torch.zeros(1)).frozen


def test_heads_keep_the_rules_of_their_losses(photo_shards: str) -> None:
    """SimSiam's predictor has a constant rate: rates by depth are of the encoder alone."""
    table = {
        "views": {"use": "byol.crops", "size": 32}, "encoder": {"use": "torchvision.resnet", "width": 8},
        "loss": [{"use": "simsiam.image", "channels": 8, "predictor_hidden": 4}], "extra": [{"use": "finetune.layers", "blocks": 4}],
        "data": {"shards": photo_shards, "workers": 0}, "optimizer": {"use": "sgd", "lr": 0.1}, "run": {"steps": 1, "batch_size": 4, "device": "cpu"},
    }
    setup = build(read(table))
    optimizer, trainable = make_optimizer(setup.assembly, setup.model.online)
    predictor = next(parameter for name, parameter in trainable.items() if "predictor" in name)
    (group,) = (g for g in optimizer.param_groups if any(p is predictor for p in g["params"]))
    assert group["schedule"] == "constant" and group["lr_scale"] == 1
    assert len({g["lr_scale"] for g in optimizer.param_groups}) > 3


def test_mixing_as_published() -> None:
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    seen = set()
    for seed in range(30):
        how = Mixing(0.8, 1.0, 1.0, 0.5, 0.1)
        x, target = mixed(images, labels, 6, how, seed)
        assert torch.allclose(target.sum(1), torch.ones(6), atol=1e-6)
        torch.testing.assert_close(target, targets(images.shape, labels, 6, how, seed))
        lam = float((target[0, 0] - 0.1 / 6) / 0.9)
        whole = (x == images).all(1)
        if whole[0].any() and lam < 1:  # CutMix: a box of the mirrored partner, and the share is its true area
            seen.add("cutmix")
            assert lam == pytest.approx(float(whole[0].float().mean()), abs=1e-6) and torch.equal(x[0][:, ~whole[0]], images[5][:, ~whole[0]])
        elif lam < 1:
            seen.add("mixup")
            torch.testing.assert_close(x, lam * images + (1 - lam) * images.flip(0), atol=1e-5, rtol=0)
    assert seen == {"cutmix", "mixup"}
    torch.testing.assert_close(smoothed(labels[:2], 4, 0.2), torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.85, 0.05, 0.05]]))
    with pytest.raises(RecipeError, match="a rank has 5. Write an even batch_size"):
        mixed(images[:5], labels[:5], 6, Mixing(0.8, 0.0, 1.0, 0.5, 0.0), 0)


def test_draws_leave_the_global_generators_alone_and_erasing_goes_by_sample() -> None:
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    with drawn_from(3):
        one = random.random(), float(torch.rand(())), float(np.random.rand())
    with drawn_from(3):
        assert one == (random.random(), float(torch.rand(())), float(np.random.rand()))
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1]) and (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]
    images = torch.zeros(8, 3, 32, 32)
    found = erased(images, torch.arange(8), 0.5, ("a", 0))
    touched = (found != 0).flatten(1).any(1)
    assert 0 < int(touched.sum()) < 8 and torch.equal(erased(images[3:5], torch.arange(3, 5), 0.5, ("a", 0)), found[3:5])


def test_randaugment_changes_an_image_by_its_own_seed() -> None:
    part: Any = parts()["randaugment"]()
    draw = part.draw_augment(rng=np.random.default_rng(0))
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    params = {"seed": torch.stack([draw["seed"], torch.tensor(5), torch.tensor(6)])}
    found = part.apply_augment(pixels=pixels, params=params)
    assert found.shape == pixels.shape and found.dtype == torch.uint8 and not torch.equal(found, pixels)
    assert torch.equal(part.apply_augment(pixels=pixels[1:], params={"seed": params["seed"][1:]}), found[1:])
    with pytest.raises(RecipeError, match="timm reads no RandAugment from 'and-m9'"):
        parts()["randaugment"](config="and-m9")


def test_scaled_crops_keep_shapes_and_never_leave_the_image() -> None:
    part: Any = parts()["scaled_crops"](size=(64, 96), base=(100, 200), scale=(0.5, 2.0))
    shares = []
    for seed in range(40):
        g: Geometry = part.sample_views(size=(300, 600), rng=np.random.default_rng(seed))
        x0, y0, x1, y1 = g.boxes[0].tolist()
        assert min(x0, y0) >= 0 and max(x1, y1) <= 1 + 1e-6
        assert (x1 - x0) * 600 / ((y1 - y0) * 300) == pytest.approx(1.5, rel=1e-4)
        shares.append(y1 - y0)
    assert min(shares) < 0.4 and max(shares) == pytest.approx(1.0)  # scale 2 sees 64 of 200 rows, 0.5 would see more than all
    whole: Any = parts()["scaled_crops"](size=(64, 96), base=(64, 96), scale=(1.0, 1.0), flip=0.0)
    assert whole.sample_views(size=(300, 600), rng=np.random.default_rng(0)).boxes.tolist() == [[0, 0, 1, 1]]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> str:
    from twinview.data.prepare.pack import pack
    from twinview.data.writing.writer import Options

    root = tmp_path_factory.mktemp("three")
    for n, name in enumerate(("blue", "green", "red")):
        (root / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng([n, i]).integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - n] += 90
            Image.fromarray(pixels).save(root / "images" / name / f"{i}.png")
    pack("imagefolder", str(root / "images"), root / "shards", Options())
    return str(root / "shards")


def recipe(shards: str) -> dict[str, Any]:
    vit = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 3, "heads": 2, "img_size": 32, "drop_path": 0.1, "final_norm": False}
    return {
        "views": {"use": "byol.crops", "views": 1, "size": 32, "scale": [0.5, 1.0]},
        "augment": {"use": "finetune.randaugment", "config": "rand-m3-n1-inc1"},
        "encoder": vit,
        "loss": [{"use": "finetune.classes", "norm": "layer", "std": 2e-5, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "erase": 0.25, "ema": True}],
        "extra": [{"use": "finetune.layers", "decay": 0.75, "blocks": 3}],
        "target": {"momentum": 0.8, "schedule": "constant"},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 4e-3, "weight_decay": 0.05},
        "run": {"steps": 48, "batch_size": 12, "log_every": 1, "device": "cpu", "checkpoint_every": 8},
        "evaluate": [
            {"use": "finetune.accuracy", "val": shards, "size": [32, 32]},
            {"use": "finetune.accuracy", "val": shards, "size": [32, 32], "branch": "target", "name": "ema"},
            {"use": "probes.robustness", "val": shards, "loss": "finetune.classes", "size": [32, 32], "sets": {"same": shards}},
        ],
    }


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_stops_and_goes_on_the_same(labeled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import twinview.engine.train as engine
    from twinview.recipe import from_table

    table = recipe(labeled)
    scores = train(table, run=tmp_path / "whole").scores
    assert scores["accuracy/top1"] > 60 and scores["ema.accuracy/top1"] > 50 and scores["accuracy/top5"] == 100
    assert scores["robustness/clean"] == scores["robustness/same"] == pytest.approx(scores["accuracy/top1"])

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.train(from_table(table), tmp_path / "cut", on_progress=stop)
    train(table, run=tmp_path / "cut", resume=True)
    assert [r["loss"] for r in rows(tmp_path / "whole")] == [r["loss"] for r in rows(tmp_path / "cut")]

    probe = recipe(labeled)  # a linear probe of what was fine-tuned, the encoder frozen
    probe["encoder"] |= {"weights": str(tmp_path / "whole"), "drop_path": 0.0}
    probe |= {"loss": [{"use": "finetune.classes", "norm": "batch", "frozen": True}], "extra": [], "augment": {"use": "byol.photometry"}, "target": {"momentum": 0.0}}
    probe["optimizer"] = {"use": "lars", "lr": 2.0}
    probe["evaluate"] = probe["evaluate"][:1]
    before = torch.load(next((tmp_path / "whole" / "checkpoints").glob("step-000048")) / "model.pt", weights_only=True)
    assert train(probe, run=tmp_path / "probe").scores["accuracy/top1"] > 60
    after = torch.load(next((tmp_path / "probe" / "checkpoints").glob("step-000048")) / "model.pt", weights_only=True)
    same = [name for name in after if name.startswith("online.encoder.")]
    assert same and all(torch.equal(before[name], after[name]) for name in same)
    assert main(["evaluate", "robustness", str(tmp_path / "whole"), "data.workers=0"]) == 0 and "clean" in capsys.readouterr().out


def test_wrong_labels_and_classes_are_one_line(install: Callable[..., None], labeled: str, photo_shards: str, tmp_path: Path) -> None:
    table = recipe(labeled)
    table["data"]["shards"] = photo_shards
    with pytest.raises(RecipeError, match=r"\[\[loss\]\] finetune.classes: needs labels, and the shards of \[data\] hold no class numbers"):
        train(table, run=tmp_path / "none")
    table = recipe(labeled)
    table["target"] = {"momentum": 0.0}
    with pytest.raises(RecipeError, match="needs an averaged target"):
        train(table, run=tmp_path / "ema")


SEGMENT = {"use": "torchvision.resnet", "name": "resnet18", "width": 8, "stem": "small"}


@pytest.fixture(scope="module")
def halves(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Photographs that are brighter on a part of them, which is class 1; class 0 elsewhere, and a column without a class."""
    from twinview.data.prepare.pack import pack_images

    root = tmp_path_factory.mktemp("halves")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for n, path in enumerate(sorted(photographs.iterdir())):
        pixels = np.array(Image.open(path).resize((64, 48))) // 2
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 10 + 2 * n :] = 1
        pixels[labels == 1] += 120
        labels[:, 0] = 255
        Image.fromarray(pixels).save(root / "images" / f"{path.stem}.png")
        Image.fromarray(labels).save(root / "labels" / f"{path.stem}.png")
    return str(pack_images(root / "images", root / "shards", root / "labels").out)


@pytest.mark.parametrize("head", ["A", "B", "upernet", "vit"])
def test_segmentation_heads_learn(head: str, halves: str, tmp_path: Path) -> None:
    loss: dict[str, Any] = {"use": "finetune.fcn", "protocol": head, "width": 8, "classes": 2}
    encoder: dict[str, Any] = {**SEGMENT, "stride": 4 if head == "A" else 2}
    if head in ("upernet", "vit"):
        loss = {"use": "finetune.upernet", "width": 8, "auxiliary_width": 8, "classes": 2}
        encoder = SEGMENT
    if head == "vit":
        encoder = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 16, "depth": 4, "heads": 2, "img_size": 32, "maps": [1, 2, 3, 4]}
        loss["levels"] = ["b1", "b2", "b3", "b4"]
    table: dict[str, Any] = {
        "views": {"use": "finetune.scaled_crops", "size": [32, 32], "base": [48, 64], "scale": [0.8, 1.5]},
        "encoder": encoder,
        "loss": [loss],
        "target": {"momentum": 0.0},
        "data": {"shards": halves, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 5e-3},
        "run": {"steps": 25, "batch_size": 6, "log_every": 5, "device": "cpu"},
        "evaluate": [
            {"use": "finetune.miou", "val": halves, "size": [48, 64], "classes": 2, "loss": loss["use"], "per_class": True},
            {"use": "finetune.miou", "val": halves, "size": [48, 64], "classes": 2, "loss": loss["use"], "window": [32, 32], "name": "sliding"},
        ],
    }
    found = train(table, run=tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert logged[-1]["loss"] < logged[0]["loss"]
    if head != "A":  # whose convolutions reach 6 cells far: 25 steps are not enough here
        assert found.scores["miou/miou"] > 60 and found.scores["sliding.miou/miou"] > 55, found.scores
    assert found.scores["miou/miou"] == pytest.approx((found.scores["miou/class0"] + found.scores["miou/class1"]) / 2)
    if head == "A":
        table["loss"][0]["classes"] = table["evaluate"][0]["classes"] = 1
        with pytest.raises(DataError, match=r"\[\[loss\]\] finetune.fcn: a label map holds 1 with classes = 1. Write more classes, or put 1 into ignore"):
            train(table, run=tmp_path / "few")


def test_label_maps_follow_their_pixels() -> None:
    from twinview.data.loading.cutting import cut, on_pixels
    from twinview.data.loading.view_labels import cut_map, stacked_labels

    pixels = torch.randint(0, 256, (1, 40, 60), dtype=torch.uint8)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0]])
    geometry = Geometry(boxes, torch.tensor([True, False]), torch.tensor([40, 60]), ((20, 30), (40, 60)), ())
    geometry, places = on_pixels(geometry, 40, 60)
    for view, flip in enumerate((True, False)):
        assert torch.equal(cut_map(pixels[0].long(), geometry, view), cut(pixels, places[view], geometry.sizes[view], flip)[0].long())
    ragged = [{"objects/0/classes": torch.tensor([3, 4]), "objects/0/boxes": torch.ones(2, 4)}, {"objects/0/classes": torch.tensor([5]), "objects/0/boxes": torch.ones(1, 4)}]
    assert stacked_labels(ragged)["objects/0/classes"].tolist() == [[3, 4], [5, -1]]


def test_fewer_blocks_than_said_are_refused_before_the_first_step(labeled: str, tmp_path: Path) -> None:
    table = recipe(labeled)
    table["extra"] = [{"use": "finetune.layers", "blocks": 12}]
    with pytest.raises(RecipeError, match=r"finetune.layers blocks: 12, and the encoder has 3. Write blocks = 3"):
        train(table, run=tmp_path / "run")


def test_class_255_is_a_class_like_others() -> None:
    found = truth_of(torch.tensor([0, 255, 299, 300]), 300, [300], False, "here")
    assert found.tolist() == [0, 255, 299, NONE] and NONE < 0
