"""Data sets as other tools, other years and other file systems leave them: nothing is lost without a word, nothing ends in a traceback."""
from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twinview.cli import main
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.read import read_class, read_map
from twinview.data.dataset.shards import Shards
from twinview.data.prepare.pack import pack
from twinview.data.writing.writer import Options, Summary
from twinview.errors import DataError

Write = Callable[[str, Mapping[str, bytes]], Path]
NAMES = ["1.jpg", "2.jpg", "3.jpg"]
IMAGES: list[dict[str, Any]] = [{"id": n + 1, "file_name": f, "width": 48, "height": 36} for n, f in enumerate(NAMES)]
BOX: dict[str, Any] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
CAR = [{"id": 1, "name": "car"}]


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 36), "teal").save(file, "JPEG")
    return file.getvalue()


def png(number: int = 1) -> bytes:
    file = io.BytesIO()
    Image.new("L", (48, 36), number).save(file, "PNG")
    return file.getvalue()


def tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def packed(kind: str, source: Path | str, **chosen: Any) -> tuple[Shards, dict[str, Any], Summary]:
    out = Path(source).parent / f"out-{len(list(Path(source).parent.iterdir()))}"
    found = pack(kind, str(source), out, Options(), **chosen)
    return open_shards(str(out)), json.loads((out / "manifest.json").read_text()), found


def keys(shards: Shards) -> list[str]:
    return [shards.key(i) for i in range(len(shards))]


# ---- COCO's format as other tools write it
Images = list[dict[str, Any]]
NOT_LISTED = "images that the annotation file does not list, and which are not packed"
NO_OWNER = "annotations of images that the file does not list"


def coco(tmp_path: Path, images: Images = IMAGES, boxes: Any = (BOX,), categories: Any = CAR, place: str = "annotations/instances_train2017.json") -> Path:
    said = {"images": images, "annotations": list(boxes) if isinstance(boxes, tuple) else boxes, "categories": categories}
    return tree(tmp_path / "coco", {f"train2017/{f}": jpeg() for f in NAMES} | {place: json.dumps(said).encode()})


@pytest.mark.parametrize(
    ("images", "boxes", "kept", "unmatched"),
    [
        (IMAGES, (BOX,), 1, {}),
        ([{**i, "file_name": "/home/them/coco/train2017/" + i["file_name"]} for i in IMAGES], (BOX,), 1, {}),
        ([{**i, "file_name": "C:\\data\\train2017\\" + i["file_name"]} for i in IMAGES], (BOX,), 1, {}),
        ([{**i, "file_name": "./images/" + i["file_name"]} for i in IMAGES], (BOX,), 1, {}),
        (IMAGES, ({**BOX, "image_id": "1"},), 1, {}),
        ([{**i, "id": f"{i['id']:012}"} for i in IMAGES], ({**BOX, "image_id": 1.0},), 1, {}),
        ([{**i, "id": f"image {i['id']}"} for i in IMAGES], ({**BOX, "image_id": "image 2"},), 1, {}),
        ([{k: v for k, v in i.items() if k != "id"} for i in IMAGES], (BOX,), 0, {NO_OWNER: 1}),
        (IMAGES, (BOX, {**BOX, "image_id": 77}, {k: v for k, v in BOX.items() if k != "image_id"}), 1, {NO_OWNER: 2}),
        ([*IMAGES, {**IMAGES[0], "id": 9}], (BOX, {**BOX, "id": 2, "image_id": 9}), 2, {"images listed twice, whose annotations are joined": 1}),
        (IMAGES[:2], (BOX,), 1, {NOT_LISTED: 1}),
        (IMAGES, ({**BOX, "category_id": 5},), 1, {"annotations of a category that the file does not name": 1}),
        (IMAGES, None, 0, {}),
    ],
)
def test_coco_of_other_tools(tmp_path: Path, images: Images, boxes: Any, kept: int, unmatched: dict[str, int]) -> None:
    shards, manifest, found = packed("coco", coco(tmp_path, images, boxes))
    said = [json.loads(shards.read(i).fields["json"]) for i in range(len(shards))]
    assert keys(shards) == [f.removesuffix(".jpg") for f in NAMES[: len(images)]] and sum(len(one["annotations"]) for one in said) == kept
    assert found.unmatched == manifest.get("unmatched", {}) == unmatched
    assert all(f"{count} {kind}" in found.text() for kind, count in unmatched.items())


def test_categories_may_be_words(tmp_path: Path) -> None:
    categories = [{"id": "car", "name": "car"}, {"id": 10, "name": "bus"}, {"id": 9, "name": "tram"}, {"id": "x"}]
    _, manifest, _ = packed("coco", coco(tmp_path, boxes=({**BOX, "category_id": "car"},), categories=categories))
    assert list(manifest["categories"].items()) == [("9", "tram"), ("10", "bus"), ("car", "car"), ("x", "x")] and "unmatched" not in manifest


@pytest.mark.parametrize("place", ["train2017/_annotations.coco.json", "annotations/person_keypoints.json"])
def test_annotation_files_of_other_names(tmp_path: Path, place: str) -> None:
    root = coco(tmp_path, place=place)
    chosen = {"annotations": str(root / place)} if "keypoints" in place else {}
    assert packed("coco", root, **chosen)[0].fields == {"jpg", "json"}
    with pytest.raises(DataError, match=r"^annotations: there is no file /nowhere\.json\.$"):
        packed("coco", root, annotations="/nowhere.json")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"images": {"1": IMAGES[0]}}, "is not of COCO's format: images is a list of tables"),
        ({"images": ["1.jpg"]}, "is not of COCO's format: images is a list of tables, and holds '1.jpg'"),
        ({"images": [{"id": 1}]}, "images[0] has no file_name"),
        ({"images": [{"id": 1, "file_name": 7}]}, "images[0] has no file_name"),
        ({"images": [IMAGES[0], {**IMAGES[1], "id": 1}]}, "two images have the id 1"),
        ({"images": IMAGES, "categories": [*CAR, {"id": "1", "name": "bus"}]}, "two categories have the id '1': 'car' and 'bus'"),
        ({"annotations": []}, "It has images"),
        ([], "is no such annotation file"),
        ({"images": [{"id": 1, "file_name": "../../../etc/passwd"}]}, "coco/train2017/etc/passwd: cannot be read"),
    ],
)
def test_what_is_not_of_cocos_format_is_named(tmp_path: Path, broken: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(coco(tmp_path), {"annotations/instances_train2017.json": json.dumps(broken).encode()})
    assert main(["shards", "pack", "coco", str(root), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


# ---- label maps without an image
@pytest.mark.parametrize(
    ("kind", "files", "chosen"),
    [
        ("cityscapes", {"leftImg8bit/train/ulm/ulm_0_leftImg8bit.jpg": jpeg(), "gtFine/train/ulm/ulm_0_gtFine_labelIds.png": png(),
                        "gtFine/train/bonn/bonn_0_gtFine_labelIds.png": png(), "gtFine/train/ulm/._ulm_0_gtFine_labelIds.png": b"", "leftImg8bit/.cache/a.png": b""}, {}),
        ("bdd100k", {"images/10k/train/a.jpg": jpeg(), "labels/sem_seg/masks/train/a.png": png(), "labels/sem_seg/masks/train/b.png": png()}, {"split": "10k/train"}),
        ("bdd100k", {"images/10k/train/a.jpg": jpeg(), "labels/sem_seg/masks/train/a_train_id.png": png(), "labels/sem_seg/masks/train/b_train_id.png": png()}, {"split": "10k/train"}),
        ("ade20k", {"images/training/a.jpg": jpeg(), "annotations/training/a.png": png(), "annotations/training/b.png": png()}, {}),
        ("cocostuff", {"train2017/a.jpg": jpeg(), "stuffthingmaps/train2017/a.png": png(), "stuffthingmaps/train2017/b.png": png()}, {}),
        ("voc", {"JPEGImages/a.jpg": jpeg(), "SegmentationClass/a.png": png(), "SegmentationClass/b.png": png(), "ImageSets/Segmentation/train.txt": b"a\r\n",
                 "ImageSets/Segmentation/._train.txt": b"\0"}, {}),
        ("images", {"a.jpg": jpeg(), "maps/a.png": png(), "maps/b.png": png()}, {"labels": "maps"}),
    ],
)
def test_label_maps_without_an_image_are_counted_and_said(tmp_path: Path, kind: str, files: Mapping[str, bytes], chosen: dict[str, str]) -> None:
    root = tree(tmp_path / "set", files)
    if "labels" in chosen:
        chosen = {"labels": str(root / "maps")}
    shards, manifest, found = packed(kind, root, **chosen)
    assert len(shards) == manifest["labels"] == 1 and found.unmatched == manifest["unmatched"] == {"label maps without an image": 1}
    assert "; 1 label maps without an image" in found.text() and read_map(shards, 0).shape == (36, 48)


def test_lists_of_voc_that_name_an_image_for_each_of_its_people(tmp_path: Path) -> None:
    root = tree(tmp_path / "VOC2012", {"JPEGImages/a.jpg": jpeg(), "JPEGImages/b.jpg": jpeg(), "ImageSets/Action/jumping_train.txt": b"a  1  1\na  2 -1\nb  1  1\n"})
    shards, _, found = packed("voc", root, split="Action/jumping_train")
    assert keys(shards) == ["a", "b"] and found.unmatched == {"lines that name an image again": 1}


def test_ade20ks_names_come_from_its_table(tmp_path: Path) -> None:
    rows = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{n}\t0.1\t9\t1\tthing {n}, object\n" for n in range(1, 151))
    root = tree(tmp_path / "ade", {"images/training/a.jpg": jpeg(), "annotations/training/a.png": png(), "objectInfo150.txt": rows.encode()})
    assert packed("ade20k", root)[1]["classes"][149] == "thing 150, object"


def test_soda10m_with_the_other_name_of_its_annotations(tmp_path: Path) -> None:
    said = {"images": [{**IMAGES[0], "file_name": "1.jpg"}], "annotations": [BOX], "categories": CAR}
    root = tree(tmp_path / "SSLAD-2D", {"labeled/train/1.jpg": jpeg(), "labeled/train/2.jpg": jpeg(), "labeled/annotations/instances_train.json": json.dumps(said).encode()})
    shards, _, found = packed("soda10m", root, split="train")
    assert keys(shards) == ["1"] and found.unmatched == {NOT_LISTED: 1}


def waymo(path: Path, rows: list[tuple[str, int, int, bytes | None]]) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["key.segment_context_name", "key.frame_timestamp_micros", "key.camera_name", "[CameraImageComponent].image"]
    kinds = [arrow.string(), arrow.int64(), arrow.int8(), arrow.binary()]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(arrow.table({n: arrow.array([row[i] for row in rows], k) for i, (n, k) in enumerate(zip(names, kinds))}), path)


def test_odd_files_of_waymo(tmp_path: Path) -> None:
    root = tmp_path / "waymo"
    waymo(root / "training/camera_image/a.parquet", [("a", 1, 1, jpeg()), ("a", 1, 2, None), ("a", 1, 9, jpeg())])
    tree(root, {"training/camera_image/._a.parquet": b"AppleDouble"})
    out = tmp_path / "out"
    pack("waymo", str(root), out, Options(bad_samples=1))
    assert keys(open_shards(str(out))) == ["a/1_front", "a/1_9"] and "is an empty file" in (out / "manifest.json").read_text()
    waymo(root / "training/camera_image/b.parquet", [("a", 1, 1, jpeg())])
    with pytest.raises(DataError, match=r"b\.parquet: its image a/1_front stands in .*a\.parquet already\. Remove one of the two\.$"):
        pack("waymo", str(root), tmp_path / "again", Options(bad_samples=1))
    first = tree(tmp_path / "first", {"training/segment-1_with_camera_labels.tfrecord": b""})
    with pytest.raises(DataError, match=r"holds \.tfrecord files, which are of version 1\. Download version 2"):
        pack("waymo", str(first), tmp_path / "again", Options())


# ---- folders
def test_hidden_folders_are_no_data(tmp_path: Path) -> None:
    hidden = (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "lost+found")
    files = {f"{place}/{n}.jpg": jpeg() for place in ("ant", "bee", *hidden, "bee/@eaDir", "bee/.thumbnails") for n in range(2)}
    root = tree(tmp_path / "in", files | {"ant/._0.jpg": b"AppleDouble", "ant/Thumbs.db": b"", "ant/notes": b""})
    shards, manifest, found = packed("imagefolder", root)
    assert manifest["classes"] == ["ant", "bee"] and [read_class(shards, i) for i in range(len(shards))] == [0, 0, 1, 1]
    assert "; 2 other files passed over (1 .db, 1 without a suffix); 7 hidden folders passed over; 1 hidden file passed over" in found.text()
    assert len(open_shards(f"images:{root}")) == 4
    assert keys(packed("images", tree(tmp_path / ".dotted", {"a.jpg": jpeg()}))[0]) == ["a"], "a hidden folder that was named is meant"


def test_an_empty_class_folder_counts(tmp_path: Path) -> None:
    train = tree(tmp_path / "train", {f"{name}/{n}.jpg": jpeg() for name in ("ant", "bee", "cat") for n in range(2)})
    val = tree(tmp_path / "val", {f"{name}/{n}.jpg": jpeg() for name in ("ant", "cat") for n in range(2)})
    (val / "bee").mkdir()
    shards, manifest, _ = packed("imagefolder", val)
    assert manifest["classes"] == packed("imagefolder", train)[1]["classes"] and [read_class(shards, i) for i in range(4)] == [0, 0, 2, 2]


# ---- other WebDataset tars
def test_fields_are_chosen_and_named(write: Write, tmp_path: Path) -> None:
    source = write("pairs.tar", {f"{n:03}.{f}": jpeg() if "jpg" in f else png() for n in range(9) for f in ("left.jpg", "right.jpg", "Mask.png", "txt")})
    with pytest.raises(DataError, match=r"has no image"):
        packed("webdataset", source)
    shards, manifest, _ = packed("webdataset", source, fields="jpg=left.jpg, seg.png=mask.png,txt")
    assert shards.fields == {"jpg", "seg.png", "txt"} and manifest["labels"] == 9 and manifest["fields"] == "jpg=left.jpg, seg.png=mask.png,txt"
    for wrong, message in (("jpg=lefft.jpg", "no sample has a file 'lefft.jpg'. Did you mean 'left.jpg'?"), ("jpg=left.jpg,jpg=right.jpg", "each new one once"), ("", "wants names")):
        with pytest.raises(DataError) as caught:
            packed("webdataset", source, fields=wrong)
        assert message in str(caught.value)


def test_names_with_dots(write: Write, tmp_path: Path) -> None:
    source = write("dots.tar", {name: jpeg() if name.endswith("jpg") else png() for n in range(9) for name in (f"v1.2/frame.{n:03}.jpg", f"v1.2/frame.{n:03}.seg.png")})
    with pytest.raises(DataError, match="has no image"):
        packed("webdataset", source)  # WebDataset's rule: one key, v1.2/frame
    shards, manifest, _ = packed("webdataset", source, dots="last")
    assert keys(shards) == [f"v1.2/frame_{n:03}" for n in range(9)] and shards.fields == {"jpg", "seg.png"} and manifest["dots"] == "last"
    with pytest.raises(DataError, match=r"^dots: wants the dot where a key ends\. Did you mean 'last'\?"):
        packed("webdataset", source, dots="lst")


def test_keys_that_repeat_over_shards(write: Write, tmp_path: Path) -> None:
    for name in ("a-000", "a-001", "b.x/a-000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(f"{name}.tar", {f"{n:03}.jpg": jpeg() for n in range(4)})
    with pytest.raises(DataError, match=r"both have a sample '00[0-3]'. .*`--keys shard` puts the shard's name before them\."):
        packed("webdataset", f"{tmp_path}/a-{{000..001}}.tar")
    assert keys(packed("webdataset", f"{tmp_path}/a-{{000..001}}.tar", keys="shard")[0])[::4] == ["a-000/000", "a-001/000"]
    pack("webdataset", f"{tmp_path}/{{a-000,b.x/a-000}}.tar", tmp_path / "both", Options(), keys="shard")
    assert keys(open_shards(str(tmp_path / "both")))[4] == "b_x/a-000/000", "two shards of one name have their folders' before it"
