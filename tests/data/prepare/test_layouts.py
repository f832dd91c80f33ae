"""Small trees in each data set's own layout become the samples that training reads."""
from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_annotations, read_class, read_image, read_map
from twinview.data.dataset.shards import Shards
from twinview.data.prepare import layouts
from twinview.data.prepare.pack import pack
from twinview.data.writing.prepare_sample import Recode
from twinview.data.writing.writer import Options
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]
SIZE = (20, 30)


def jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def png(numbers: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(numbers, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tree(root: Path, files: Mapping[str, bytes | str | list[Any] | dict[str, Any]]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode())
    return root


def packed(kind: str, source: Path | str, tmp_path: Path, **chosen: Any) -> tuple[Shards, dict[str, Any]]:
    out = tmp_path / f"packed-{len(list(tmp_path.iterdir()))}"
    pack(kind, str(source), out, Options(), **chosen)
    return open_shards(str(out)), json.loads((out / "manifest.json").read_text())


def keys(shards: Shards) -> list[str]:
    return [shards.key(i) for i in range(len(shards))]


def refused(said: str, kind: str, source: Path | str, tmp_path: Path, **chosen: Any) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        pack(kind, str(source), tmp_path / "refused", Options(), **chosen)
    assert "\n" not in str(caught.value) and sorted(p.name for p in tmp_path.iterdir()) == before


LABELS = (np.arange(600) % 40).reshape(SIZE)  # 0..39: every number that Cityscapes has, and others


def test_imagefolder(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", {"n02/b.JPEG": jpeg(1), "n01/a/deep.jpg": jpeg(2), "n01/x.png": png(LABELS), "n03/y.jpg": jpeg(3), "n01/notes.txt": "no image"})
    shards, manifest = packed("imagefolder", root, tmp_path)
    assert keys(shards) == ["n01/a/deep", "n01/x", "n02/b", "n03/y"] and shards.classes == 3
    assert [read_class(shards, i) for i in range(4)] == [0, 0, 1, 2] and manifest["classes"] == ["n01", "n02", "n03"]
    (root / "loose.jpg").write_bytes(jpeg())
    refused(f"{root / 'loose.jpg'}: lies in no class's folder. Move it into one, or pack with `images`.", "imagefolder", root, tmp_path)


def coco_json(names: list[str]) -> dict[str, Any]:
    boxes = [{"id": 7, "image_id": 20, "category_id": 18, "bbox": [1.5, 2, 10, 12], "area": 120.0, "iscrowd": 0, "segmentation": [[1, 2, 3, 4, 5, 6]]}]
    images = [{"id": 10 * (n + 1), "file_name": name, "height": 20, "width": 30} for n, name in enumerate(names)]
    return {"info": {}, "images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}]}


def test_coco(tmp_path: Path) -> None:
    names = ["000000000030.jpg", "000000000009.jpg"]
    files: dict[str, Any] = {f"{split}/{name}": jpeg(n) for split in ("train2017", "test2017") for n, name in enumerate(names)}
    root = tree(tmp_path / "coco", {**files, "annotations/instances_train2017.json": coco_json(names)})
    shards, manifest = packed("coco", root, tmp_path)
    assert keys(shards) == ["000000000009", "000000000030"] and manifest["categories"] == {"1": "person", "18": "dog"}
    first, second = (json.loads(shards.read(i).fields["json"]) for i in range(2))
    assert first["image"]["id"] == 20 and first["annotations"][0]["bbox"] == [1.5, 2, 10, 12] and second["annotations"] == []
    bare, manifest = packed("coco", root, tmp_path, split="test2017")
    assert bare.fields == {"jpg"} and len(bare) == 2 and manifest["split"] == "test2017"
    refused("split: there is no split 'val2017'. There is: test2017, train2017.", "coco", root, tmp_path, split="val2017")
    (root / "train2017" / names[0]).unlink()
    refused(f"{root / 'train2017' / names[0]}: cannot be read: No such file or directory. Remove it", "coco", root, tmp_path)
    (root / "annotations/instances_train2017.json").write_text("[]")
    refused("instances_train2017.json: is no such annotation file: TypeError", "coco", root, tmp_path)
    tree(root, {"annotations/instances_train2017.json": {"images": [{"id": 1}], "annotations": [], "categories": []}})
    refused("instances_train2017.json: is not of COCO's format: images[0] has no file_name.", "coco", root, tmp_path)


def test_lvis(tmp_path: Path) -> None:
    said = coco_json(["a", "b"])
    for one, place in zip(said["images"], ("train2017/000000391895.jpg", "val2017/000000000009.jpg")):
        del one["file_name"]
        one |= {"coco_url": f"http://images.cocodataset.org/{place}", "neg_category_ids": [3]}
    files = {f"{split}/{name}.jpg": jpeg() for split in ("train2017", "val2017") for name in ("000000391895", "000000000009")}
    root = tree(tmp_path / "lvis", {**files, "annotations/lvis_v1_train.json": said, "test2017/000000000001.jpg": jpeg()})
    shards, manifest = packed("lvis", root, tmp_path)
    assert keys(shards) == ["train2017/000000391895", "val2017/000000000009"] and manifest["categories"]["18"] == "dog"
    second = json.loads(shards.read(1).fields["json"])
    assert second["image"]["neg_category_ids"] == [3] and second["annotations"][0]["bbox"] == [1.5, 2, 10, 12]
    refused("split: there is no split 'val'. There is: train.", "lvis", root, tmp_path, split="val")


@pytest.mark.parametrize("below", ["", "images/"])
def test_cocostuff(tmp_path: Path, below: str) -> None:
    numbers = np.full(SIZE, 181)
    numbers[0] = 255
    root = tree(tmp_path / "coco", {f"{below}val2017/000000000139.jpg": jpeg(), "stuffthingmaps/val2017/000000000139.png": png(numbers)})
    shards, _ = packed("cocostuff", root, tmp_path, split="val2017")
    assert keys(shards) == ["000000000139"] and np.array_equal(read_map(shards, 0), numbers)
    refused("split: there is no split 'train2017'. There is: val2017.", "cocostuff", root, tmp_path)
    refused(f"{tmp_path / 'stuffthingmaps'}: there is no such folder of pixel maps.", "cocostuff", tmp_path, tmp_path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    files: dict[str, bytes] = {}
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "bonn")):
        name = f"{split}/{city}/{city}_000000_000019"
        files |= {f"leftImg8bit/{name}_leftImg8bit.png": png(np.stack([LABELS] * 3, 2)), f"gtFine/{name}_gtFine_labelIds.png": png(LABELS)}
        files |= {f"gtFine/{name}_gtFine_color.png": png(LABELS), f"gtFine/{name}_gtFine_polygons.json": b"{}"}
    return tree(tmp_path / "cityscapes", files)


def test_cityscapes(cityscapes: Path, tmp_path: Path) -> None:
    shards, manifest = packed("cityscapes", cityscapes, tmp_path)
    assert keys(shards) == ["aachen/aachen_000000_000019", "ulm/ulm_000000_000019"] and shards.fields == {"png", "seg.png"}
    found = read_map(shards, 1).numpy()
    # the official trainIds: road 7 -> 0, sidewalk 8 -> 1, building 11 -> 2, ..., bicycle 33 -> 18
    expected = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert np.array_equal(found, np.vectorize(lambda n: expected.get(n, 255))(LABELS))
    assert manifest["classes"][0] == "road" and manifest["classes"][18] == "bicycle" and len(manifest["classes"]) == 19

    shards, manifest = packed("cityscapes", cityscapes, tmp_path, split="val", classes=27)
    assert keys(shards) == ["lindau/lindau_000000_000019"] and len(manifest["classes"]) == 27 and manifest["classes"][2] == "parking"
    assert np.array_equal(read_map(shards, 0), np.where((LABELS >= 7) & (LABELS <= 33), LABELS - 7, 255))

    shards, manifest = packed("cityscapes", cityscapes, tmp_path, classes=34)
    assert shards.read(0).fields["seg.png"] == png(LABELS) and len(manifest["classes"]) == 34, "bytes untouched"
    assert packed("cityscapes", cityscapes, tmp_path, split="test")[0].fields == {"png"}
    refused("classes: Cityscapes is packed with 19, 27 or 34 classes, not 20.", "cityscapes", cityscapes, tmp_path, classes=20)
    (cityscapes / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    refused("ulm_000000_000019_leftImg8bit.png: has no label map", "cityscapes", cityscapes, tmp_path)


def test_bdd100k(tmp_path: Path) -> None:
    files = {f"images/{split}/{name}.jpg": jpeg() for split in ("100k/train", "100k/val", "10k/train", "10k/test") for name in ("0004a4c0-d4dff0ad", "0000f77c-6257be58")}
    masks = {f"labels/sem_seg/masks/train/{name}.png": png(LABELS % 19) for name in ("0004a4c0-d4dff0ad", "0000f77c-6257be58")}
    root = tree(tmp_path / "bdd100k", files | masks)
    shards, _ = packed("bdd100k", root, tmp_path)
    assert keys(shards) == ["0000f77c-6257be58", "0004a4c0-d4dff0ad"] and shards.fields == {"jpg"}
    shards, manifest = packed("bdd100k", root, tmp_path, split="10k/train")
    assert np.array_equal(read_map(shards, 0), LABELS % 19) and manifest["classes"][13] == "car"
    assert packed("bdd100k", root, tmp_path, split="10k/test")[0].fields == {"jpg"}
    refused("split: there is no split 'train'. There is: 100k/train, 100k/val, 10k/test, 10k/train.", "bdd100k", root, tmp_path, split="train")


def test_cityscapes_instances(cityscapes: Path, tmp_path: Path) -> None:
    """Two cars and a crowd of people; the pole's number counts no instances."""
    numbers = np.full(SIZE, 7)
    numbers[2:5, 4:9], numbers[2, 4], numbers[10:12, 20:30], numbers[15, :3], numbers[0] = 26000, 7, 26001, 24, 17
    for place in (cityscapes / "gtFine/train").glob("*/*_labelIds.png"):
        Image.fromarray(numbers.astype(np.uint16)).save(place.with_name(place.name.replace("_labelIds", "_instanceIds")))
    shards, manifest = packed("cityscapes", cityscapes, tmp_path, objects=True)
    crowd, first, second = read_annotations(shards, 0)
    assert (crowd["category_id"], crowd["bbox"], crowd["iscrowd"]) == (24, [0, 15, 3, 1], 1) and manifest["categories"]["26"] == "car"
    assert first["bbox"] == [4, 2, 5, 3] and first["area"] == 14 and second["bbox"] == [20, 10, 10, 2] and not first["iscrowd"]
    mask = np.repeat(np.arange(len(first["segmentation"]["counts"])) % 2, first["segmentation"]["counts"]).reshape(SIZE[::-1]).T
    assert np.array_equal(mask, numbers == 26000) and shards.fields == {"png", "seg.png", "json"}
    place.with_name(place.name.replace("_labelIds", "_instanceIds")).unlink()
    refused("(1 of 2 have none). Add it, or pack without instances.", "cityscapes", cityscapes, tmp_path, objects=True)
    refused("objects: test has no instances. Pack train or val with them.", "cityscapes", cityscapes, tmp_path, objects=True, split="test")


def test_bdd100k_objects(tmp_path: Path) -> None:
    frames = [
        {"name": "a.jpg", "labels": [
            {"category": "car", "box2d": {"x1": 10, "y1": 20, "x2": 19.5, "y2": 39}, "attributes": {"crowd": False}},
            {"category": "pedestrian", "box2d": {"x1": 0, "y1": 0, "x2": 4, "y2": 4}, "attributes": {"crowd": True}},
            {"category": "trailer", "box2d": {"x1": 0, "y1": 0, "x2": 4, "y2": 4}},
        ]},
        {"name": "gone.jpg", "labels": None},
    ]
    masks = [{"name": "a.jpg", "labels": [{"category": "rider", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "rle": {"counts": "abc", "size": [720, 1280]}}]}]
    files: dict[str, Any] = {f"images/{split}/{name}.jpg": jpeg() for split in ("100k/train", "10k/train") for name in "ab"}
    said: dict[str, Any] = {"labels/det_20/det_train.json": frames, "labels/ins_seg/rles/ins_seg_train.json": {"frames": masks}}
    root = tree(tmp_path / "bdd100k", files | said)
    shards, manifest = packed("bdd100k", root, tmp_path, objects=True)
    car, crowd = read_annotations(shards, 0)
    assert car["bbox"] == [10, 20, 10.5, 20] and car["category_id"] == 3 and not car["iscrowd"] and crowd["iscrowd"] and crowd["category_id"] == 1
    assert read_annotations(shards, 1) == [] and manifest["categories"]["10"] == "traffic sign"
    (rider,) = read_annotations(packed("bdd100k", root, tmp_path, split="10k/train", objects=True)[0], 0)
    assert rider["segmentation"] == {"counts": "abc", "size": [720, 1280]} and rider["bbox"] == [1, 2, 3, 3]
    tree(root, {"labels/det_20/det_train.json": {"frames": [3]}})
    refused("det_train.json: is no annotation file of Scalabel's format: ValueError: is no list of tables.", "bdd100k", root, tmp_path, objects=True)
    tree(root, {"labels/det_20/det_train.json": [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]})
    refused("det_train.json: a.jpg: has a box2d that is none: KeyError: 'y1'.", "bdd100k", root, tmp_path, objects=True)


def test_soda10m(tmp_path: Path) -> None:
    names = ["HT_TRAIN_000001_SH_000.jpg", "HT_TRAIN_000002_SH_000.jpg"]
    files: dict[str, Any] = {f"unlabeled/image_{n}/{n:06}.jpg": jpeg(n) for n in range(3)} | {f"labeled/train/{name}": jpeg() for name in names}
    root = tree(tmp_path / "SSLAD-2D", {**files, "labeled/test/a.jpg": jpeg(), "labeled/annotations/instance_train.json": coco_json(names)})
    assert keys(packed("soda10m", root, tmp_path)[0]) == [f"image_{n}/{n:06}" for n in range(3)]
    shards, manifest = packed("soda10m", root, tmp_path, split="train")
    assert shards.fields == {"jpg", "json"} and len(json.loads(shards.read(1).fields["json"])["annotations"]) == 1 and "categories" in manifest
    assert packed("soda10m", root, tmp_path, split="test")[0].fields == {"jpg"}
    refused("split: there is no split 'val'. There is: test, train, unlabeled.", "soda10m", root, tmp_path, split="val")


def parquet(path: Path, rows: list[tuple[str, int, int, bytes]]) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["key.segment_context_name", "key.frame_timestamp_micros", "key.camera_name", "[CameraImageComponent].image"]
    kinds = [arrow.string(), arrow.int64(), arrow.int8(), arrow.binary()]
    path.parent.mkdir(parents=True, exist_ok=True)
    index = arrow.array([f"{s};{t};{c}" for s, t, c, _ in rows])
    writer.write_table(arrow.table({"index": index, **{n: arrow.array([row[i] for row in rows], k) for i, (n, k) in enumerate(zip(names, kinds))}}), path)


def test_waymo(tmp_path: Path) -> None:
    root = tmp_path / "waymo"
    segments = ["10017090168044687777_6380_000_6400_000", "10023947602400723454_1120_000_1140_000"]
    for segment in segments:
        rows = [(segment, 1550083467346370 + frame, camera, jpeg(camera)) for frame in range(4) for camera in range(1, 6)]
        parquet(root / "training" / "camera_image" / f"{segment}.parquet", rows)
    shards, manifest = packed("waymo", root, tmp_path)
    assert len(shards) == 40 and keys(shards)[:2] == [f"{segments[0]}/1550083467346370_front", f"{segments[0]}/1550083467346370_front_left"]
    assert shards.read(4).fields == {"jpg": jpeg(5)} and manifest["images"] == 40
    refused("split: there is no split 'validation'. There is: training.", "waymo", root, tmp_path, split="validation")
    (root / "training/camera_image/zz.parquet").write_bytes(b"no parquet")
    refused("zz.parquet: is no parquet file", "waymo", root, tmp_path)
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"key.camera_name": [1]}), root / "training/camera_image/zz.parquet")
    refused("zz.parquet: has no column [CameraImageComponent].image.", "waymo", root, tmp_path)


def test_waymo_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("which pyarrow reads: `pip install 'twinview[waymo]'`.", "waymo", tmp_path, tmp_path)


def test_voc(tmp_path: Path) -> None:
    palette = Image.fromarray((LABELS % 21).astype(np.uint8)).convert("L")
    palette = Image.frombytes("P", SIZE[::-1], palette.tobytes())
    palette.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    file = io.BytesIO()
    palette.save(file, "PNG")
    names = ["2007_000032", "2007_000039", "2007_000063"]
    files: dict[str, Any] = {f"JPEGImages/{name}.jpg": jpeg() for name in names} | {f"SegmentationClass/{name}.png": file.getvalue() for name in names[:2]}
    lists = {"ImageSets/Segmentation/train.txt": "\n".join(names[:2]) + "\n", "ImageSets/Main/trainval.txt": "\n".join(names), "ImageSets/Main/dog_train.txt": f"{names[2]} -1\n"}
    root = tree(tmp_path / "VOC2012", files | lists)
    shards, manifest = packed("voc", root, tmp_path)
    assert keys(shards) == names[:2] and np.array_equal(read_map(shards, 1), LABELS % 21) and manifest["classes"][15] == "person" and len(manifest["classes"]) == 21
    assert keys(packed("voc", root, tmp_path, split="Main/trainval")[0]) == names and keys(packed("voc", root, tmp_path, split="Main/dog_train")[0]) == names[2:]
    refused("split: there is no split 'val'. There is: Main/dog_train, Main/trainval, Segmentation/train.", "voc", root, tmp_path, split="val")


def voc_xml(*objects: str) -> bytes:
    return f"<annotation><size><width>30</width><height>20</height><depth>3</depth></size>{''.join(objects)}</annotation>".encode()


def voc_object(name: str, difficult: int = 0) -> str:
    box = "<bndbox><xmin>3</xmin><ymin>5</ymin><xmax>12</xmax><ymax>20</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}{part}</object>"


def test_voc_boxes(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"JPEGImages/{name}.jpg": jpeg() for name in ("1", "2")} | {"ImageSets/Main/trainval.txt": "1\n2\n"}
    said = {"Annotations/1.xml": voc_xml(voc_object("dog"), voc_object("aeroplane", 1)), "Annotations/2.xml": voc_xml()}
    root = tree(tmp_path / "VOC2007", files | said)
    shards, manifest = packed("voc", root, tmp_path, split="Main/trainval", objects=True)
    dog, plane = read_annotations(shards, 0)
    assert dog["bbox"] == [2, 4, 10, 16] and dog["category_id"] == 12 and not dog["iscrowd"] and plane["category_id"] == 1 and plane["iscrowd"]
    assert read_annotations(shards, 1) == [] and manifest["categories"]["20"] == "tvmonitor" and "0" not in manifest["categories"]
    for text, words in {
        b"<annotation>": "is no annotation of VOC: no element found",
        voc_xml("<object><name>dog</name></object>"): "is no annotation of VOC: bndbox/xmin is missing.",
        voc_xml(voc_object("unicorn")): "has an object of the class 'unicorn'. There is: aeroplane,",
    }.items():
        tree(root, {"Annotations/1.xml": text})
        refused(f"{root / 'Annotations/1.xml'}: {words}", "voc", root, tmp_path, split="Main/trainval", objects=True)
    (root / "Annotations/2.xml").unlink()
    refused("(1 of 2 have none). Add it, or pack without annotations.", "voc", root, tmp_path, split="Main/trainval", objects=True)


def test_ade20k(tmp_path: Path) -> None:
    numbers = (np.arange(600) % 151).reshape(SIZE)
    files = {"images/training/ADE_train_00000001.jpg": jpeg(), "annotations/training/ADE_train_00000001.png": png(numbers), "sceneCategories.txt": b"ADE_train_00000001 airport\n"}
    root = tree(tmp_path / "ADEChallengeData2016", files)
    shards, _ = packed("ade20k", root, tmp_path)
    assert keys(shards) == ["ADE_train_00000001"] and np.array_equal(read_map(shards, 0), np.where(numbers == 0, 255, numbers - 1))
    refused("split: there is no split 'validation'. There is: training.", "ade20k", root, tmp_path, split="validation")


def test_webdataset(write: Write, tmp_path: Path) -> None:
    files = {f"a.b/{n:03}.{field}": content for n in range(9) for field, content in (("jpg", jpeg(n)), ("cls", b"3"), ("txt", b"a street"), ("PNG", png(LABELS)))}
    source = write("their.tar", files)
    shards, manifest = packed("webdataset", source, tmp_path)
    assert len(shards.paths) == 5 and manifest["labels"] == 9 and keys(shards) == [f"a.b/{n:03}" for n in range(9)]
    assert shards.read(4).fields == {"jpg": jpeg(4), "cls": b"3", "txt": b"a street", "png": png(LABELS)}
    small = tmp_path / "small"
    pack("webdataset", str(source), small, Options(recode=Recode(shorter_side=10)))
    shards = open_shards(str(small))
    assert read_image(shards, 0).shape == (3, 10, 15) and read_map(shards, 0).shape == (10, 15) and shards.read(0).fields["txt"] == b"a street"


def test_a_key_that_leads_out_of_a_folder_is_not_passed_on(write: Write, tmp_path: Path) -> None:
    source = write("evil.tar", {"../../etc/passwd.jpg": jpeg(), "good.jpg": jpeg()})
    open_shards(str(source))  # the index that stays beside it
    refused("'../../etc/passwd': the key names a place outside of the shard. Remove it", "webdataset", source, tmp_path)
    pack("webdataset", str(source), tmp_path / "out", Options(bad_samples=1))
    assert keys(open_shards(str(tmp_path / "out"))) == ["good"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"] == ["'../../etc/passwd': the key names a place outside of the shard"]


def test_every_kind_says_what_it_takes(tmp_path: Path) -> None:
    for kind in layouts.KINDS:
        takes = {"images": "--labels", "imagefolder": "no options", "webdataset": "--fields, --dots, --keys", "coco": "--split, --annotations", "cityscapes": "--split, --classes"}.get(kind, "--split")
        with pytest.raises(DataError, match=rf"^--weather: {kind} has no such choice\. It takes {takes}"):
            layouts.find(kind, str(tmp_path), {"weather": "fine"})
