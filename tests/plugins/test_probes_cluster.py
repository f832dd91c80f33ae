"""Unsupervised segmentation: matching, scores, label maps, and the evaluation as a whole."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branch, Branches
from twinview.data.scenes.street import CLASSES
from twinview.errors import DataError, RecipeError
from twinview.ops.confusion import Confusion
from twinview.ops.sheet import palette
from twinview.values import Batch, DataFactory, Dims, EncoderSpec, Features, Level, PlainBatch, Progress, Size
from twinview_probes.cluster import Cluster
from twinview_probes.clusters import FeatureClusters
from twinview_probes.features import Pixels
from twinview_probes.labels import FOLDER, read_label_map
from twinview_probes.matching import match_clusters, matched_scores, occupancy
from twinview_probes.segments import segments_sheet

SLICES = Path(__file__).parent / "fixtures" / "densesiam" / "slices.pt"
SIZE = (24, 48)


# ---- matching
def test_the_official_evaluators_numbers() -> None:
    case = torch.load(SLICES, weights_only=True)["evaluator"]
    match = match_clusters(case["conf"])
    assert torch.equal(match, case["match"][1])
    found = matched_scores(case["conf"], match, range(12))
    official, ordered = case["official"], case["class_order"]
    assert found["miou"] == pytest.approx(official["mIoU"]) and found["accuracy"] == pytest.approx(official["aAcc"])
    assert found["mean_accuracy"] == pytest.approx(official["mAcc"])
    assert found["things"] == pytest.approx(float(ordered["mIoU_th_full"])) and found["stuff"] == pytest.approx(float(ordered["mIoU_st_full"]))
    assert abs(found["things"] - official["mIoU_th"]) > 20  # the released split, by cluster and not by class, is wrong


def test_the_official_evaluators_counts(shared: Path) -> None:
    case = torch.load(shared / "reference" / "densesiam" / "evaluator.pt", weights_only=True)
    for logits, label, expected in ((*case["inputs"].values(), case["conf"]), (*(case["upsample"][k] for k in ("logits", "label", "conf")),)):
        given = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
        confusion = Confusion(27)
        confusion.add(label[label >= 0], given[label >= 0])
        assert torch.equal(confusion.counts, expected.long())


def test_the_matching_is_the_best_of_all() -> None:
    counts = torch.randint(0, 50, (4, 5), generator=torch.Generator().manual_seed(0))
    best = max(sum(int(counts[c, k]) for c, k in enumerate(chosen)) for chosen in itertools.permutations(range(5), 4))
    assert sum(int(counts[c, k]) for c, k in enumerate(match_clusters(counts))) == best


def test_more_classes_than_clusters_and_the_other_way_round() -> None:
    few = torch.tensor([[10, 0], [0, 8], [4, 0]])
    assert match_clusters(few).tolist() == [0, 1, -1]
    found = matched_scores(few, match_clusters(few))
    assert found["accuracy"] == pytest.approx(100 * 18 / 22) and found["miou"] == pytest.approx(100 * (10 / 14 + 1 + 0) / 3)
    many = torch.tensor([[10, 0, 5], [0, 8, 0]])
    assert match_clusters(many).tolist() == [0, 1] and matched_scores(many, match_clusters(many))["miou"] == pytest.approx(100 * (10 / 15 + 1) / 2)


def test_classes_that_do_not_occur_are_left_out() -> None:
    counts = torch.tensor([[6, 0, 0], [0, 4, 0], [0, 0, 0]])
    assert matched_scores(counts, match_clusters(counts), [1, 2]) == {"miou": 100, "accuracy": 100, "mean_accuracy": 100, "things": 100, "stuff": 100}


def test_occupancy_tells_of_a_collapse() -> None:
    even, one = torch.full((3, 4), 5), torch.tensor([[98, 0, 2, 0]] * 3)
    assert occupancy(even) == {"entropy": pytest.approx(1), "empty": 0, "collapsed": 0}
    found = occupancy(one)
    assert found["empty"] == 2 and found["collapsed"] == 1 and found["entropy"] == pytest.approx(-(0.98 * math.log(0.98) + 0.02 * math.log(0.02)) / math.log(4))


# ---- label maps
@pytest.mark.parametrize(("name", "labels", "classes", "things"), [("coco_stuff27", 182, 27, 12), ("cityscapes27", 27, 27, 10), ("cityscapes19", 19, 19, 8), ("camvid11", 11, 11, 3), ("scenes10", 10, 10, 4)])
def test_a_label_map_is_whole(name: str, labels: int, classes: int, things: int) -> None:
    found = read_label_map(name)
    assert len(set(found.names)) == len(found.names) == classes and len(found.things) == things
    used = found.lookup[found.lookup != 255]
    assert len(used) == labels and sorted(set(used.tolist())) == list(range(classes)) and int(found.lookup[255]) == 255


def test_labels_of_the_data_sets() -> None:
    coco, city = read_label_map("coco_stuff27"), read_label_map("cityscapes19")
    known = {0: "person", 2: "vehicle", 61: "furniture (thing)", 92: "textile", 95: "building", 123: "plant", 148: "ground", 156: "sky", 177: "water", 181: "solid"}
    assert {k: coco.names[int(coco.lookup[k])] for k in known} == known
    assert coco.lookup[:91].max() == 11 and coco.lookup[91:182].min() == 12 and (coco.lookup == 9).sum() == 1
    known = {7: "road", 8: "sidewalk", 11: "building", 24: "person", 26: "car", 33: "bicycle"}
    assert {k: city.names[int(city.lookup[k])] for k in known} == known and city.lookup[[0, 9, 29]].tolist() == [255] * 3
    assert read_label_map("scenes10").names == CLASSES
    assert sorted(p.stem for p in FOLDER.glob("*.toml")) == ["camvid11", "cityscapes19", "cityscapes27", "coco_stuff15", "coco_stuff27", "scenes10"]


@pytest.mark.parametrize(("text", "message"), [
    ("names = ['a']\nfine = [0, 1]", "fine wants up to 256 classes from 0 to 0, or 255 for none"),
    ("names = ['a']", "is no label map: KeyError: 'fine'"),
    ("names = [", "is no label map: TOMLDecodeError"),
    ("names = ['a']\nthings = [1]\nfine = [0]", "names is a list, and things are places in it"),
    ("names = 'ab'\nfine = [0]", "names is a list, and things are places in it"),
])
def test_a_label_map_of_ones_own(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text("names = ['a', 'b']\nfine = [1, 0, 255]\n")
    assert read_label_map(str(path))(torch.tensor([0, 1, 2, 9, 255])).tolist() == [1, 0, 255, 255, 255]
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_label_map(str(path))
    assert message in str(caught.value)
    with pytest.raises(RecipeError, match="there is no label map 'camvid'. Did you mean 'camvid11'?"):
        Cluster(val="val", size=SIZE, labels="camvid")


# ---- the evaluation
class Net(nn.Module):
    """Cells of 8 pixels: the mean color."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.0 if blind else 1.0))
        self.spec = EncoderSpec(pooled=3, cells=Level(3, 8), levels={"c3": Level(3, 8)})

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        cells = F.avg_pool2d(images, 8) * self.scale
        return Features(cells=cells, pooled=cells.mean((2, 3)), levels={"c3": cells})


class Blocks(DataFactory):
    """A data factory: pictures of blocks of 8 pixels, each of one of three colors; its label is 10 + the color, red blocks have none."""

    channels = 3

    def __init__(self, images: int = 9) -> None:
        self.images = images

    def plain(
        self, shards: str | Sequence[str] | None = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64,
        crop: bool | float = False, interpolation: str = "bilinear",
    ) -> Iterator[PlainBatch]:
        assert size == SIZE and not (shards is None and labels), "k-means reads no labels"
        for at in range(0, self.images, batch_size):
            ids = torch.arange(at, min(at + batch_size, self.images))
            blocks = torch.stack([torch.randint(0, 3, (3, 6), generator=torch.Generator().manual_seed(int(i))) for i in ids])
            full = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
            yield PlainBatch(tuple(map(str, ids)), ids, torch.eye(3)[full].movedim(3, 1), {"map": torch.where(full == 0, 255, 10 + full)} if labels else {})

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        return ()

    def views(self, epoch: int) -> Iterator[Batch]:
        raise AssertionError("it reads whole images")


def branches(head: nn.Module) -> Branches:
    online = Branch(Net(), {"clusters/projector": head}, {}, {}).eval()
    return Branches(online, online, lambda: Net(blind=True))


def own_map(tmp_path: Path) -> str:
    path = tmp_path / "blocks.toml"
    path.write_text(f"names = ['green', 'blue']\nthings = [1]\nfine = {[255] * 11 + [0, 1]}\n")
    return str(path)


def part(tmp_path: Path, **options: Any) -> Cluster:
    found = Cluster(**{"val": "val", "size": SIZE, "labels": own_map(tmp_path), "clusters": 3, **options})
    found.check(Dims(encoder=Net().spec, grids=(), sizes=(), pairs=(), global_batch=1, dataset_size=1), Blocks())
    return found


def test_a_head_that_tells_colours_apart_scores_100(tmp_path: Path) -> None:
    head = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(head.weight.data[:, :, 0, 0])
    with torch.no_grad():
        found = part(tmp_path, head="clusters").evaluate(branches(head), Blocks())
    assert found["cluster/miou"] > 80 and found["cluster/accuracy"] > 90  # borders between blocks are blurred by the upsampling
    assert found["cluster/things"] > 80 and found["cluster/collapsed"] == 0 and set(found) == {
        f"cluster/{n}" for n in ("miou", "accuracy", "mean_accuracy", "things", "stuff", "entropy", "empty", "collapsed")}


def test_a_head_that_gives_one_cluster_has_collapsed(tmp_path: Path) -> None:
    head = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias.data[:1], 1.0)  # type: ignore[union-attr]
    with torch.no_grad():
        found = part(tmp_path, head="clusters").evaluate(branches(head), Blocks())
    assert found["cluster/collapsed"] == 1 and found["cluster/entropy"] == 0 and found["cluster/empty"] == 3 and found["cluster/miou"] < 40


def test_k_means_finds_the_colours_without_labels(tmp_path: Path) -> None:
    with torch.no_grad():
        found = part(tmp_path, baselines=["random", "pixels"]).evaluate(branches(nn.Identity()), Blocks())
    assert found["cluster/miou"] > 80 and found["cluster/pixels/miou"] > 80
    assert found["cluster/random/collapsed"] == 1  # blind features: no two places differ


def test_k_means_is_the_same_each_time() -> None:
    made = [FeatureClusters(Pixels(8, 3), Blocks().plain(size=SIZE, batch_size=4), 3, cells=6, seed=1, device=torch.device("cpu")).centers for _ in range(2)]
    assert torch.equal(*made) and made[0].shape == (3, 192)


def test_pictures_show_images_clusters_and_labels(tmp_path: Path) -> None:
    head = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(head.weight.data[:, :, 0, 0])
    step: Any = type("S", (), {"branches": branches(head), "batch": type("B", (), {"keys": ("a", "b")})})
    with torch.no_grad():
        sheet = part(tmp_path, head="clusters").pictures(step, Blocks())["segments"]
    assert sheet.dtype == torch.uint8 and sheet.shape[1] > 2 * 180 and sheet.shape[2] > 3 * 180


def test_a_sheet_colours_a_cluster_as_its_class() -> None:
    classes = torch.tensor([[[0, 1], [255, 1]]])
    match, clusters = torch.tensor([2, 0]), torch.tensor([[[2, 0], [1, 0]]])
    sheet = segments_sheet(torch.rand(1, 3, 2, 2), clusters, classes, match, ("a", "b"))
    blue, orange = torch.tensor(palette(2), dtype=torch.uint8)

    def seen(color: torch.Tensor) -> int:
        return int((sheet == color.view(3, 1, 1)).all(0).sum())

    quarter = 90 * 90  # pixels of a cell; the legend adds a few of each color
    assert quarter * 2 <= seen(blue) < quarter * 2.2 and quarter * 4 <= seen(orange) < quarter * 4.2  # in both, of one cell and of two
    assert quarter <= seen(torch.tensor([128] * 3, dtype=torch.uint8)) < quarter * 1.2 and quarter <= seen(torch.zeros(3, dtype=torch.uint8)) < quarter * 1.2


def test_faults_have_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pixel that has a class"), torch.no_grad():
        part(tmp_path, head="clusters", ignore=[11, 12, 255]).evaluate(branches(nn.Identity()), Blocks())
    with pytest.raises(DataError, match="holds the class 12 with classes = 2. Write classes = 13"), torch.no_grad():
        part(tmp_path, labels="", classes=2, head="clusters").evaluate(branches(nn.Identity()), Blocks())
    with pytest.raises(DataError, match="27 cells for 30 clusters. Write larger images or cells"), torch.no_grad():
        part(tmp_path, clusters=30, cells=3).evaluate(branches(nn.Identity()), Blocks())
    with pytest.raises(DataError, match="val holds the label 300; they go up to 255. Put 300 into ignore"):
        part(tmp_path)._classes(torch.tensor([[[1, 300]]]))
    assert part(tmp_path, ignore=[300])._classes(torch.tensor([[[11, 300]]])).tolist() == [[[0, 255]]]
    for options, message in (
        ({"labels": "", "clusters": 0}, "clusters are to be counted by k-means"),
        ({"clusters": 1}, "clusters wants two or more"),
        ({"classes": 3}, "leave one of classes and labels out"),
    ):
        with pytest.raises(ValueError, match=message):
            part(tmp_path, **options)
    assert Cluster(val="v", size=SIZE, head="h").traits().needs == {"cells"} and Cluster(val="v", size=SIZE, levels=["c3"], classes=2).traits().needs == {"levels"}
    Cluster(val="v", size=SIZE, head="h").before_epoch(Blocks(), Progress(5, 10, 0, 0.5))
