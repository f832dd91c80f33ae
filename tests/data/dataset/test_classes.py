"""Class numbers mean the same in the sets that an evaluation learns from and scores on, of whatever size and spelling they are."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import nn

from twinview.assembly import assemble
from twinview.branch import Branch, Branches
from twinview.data.dataset.open import open_data, open_shards
from twinview.data.dataset.read import read_class
from twinview.data.dataset.shards import Shards
from twinview.data.dataset.statistics import class_names
from twinview.data.loading.factory import Factory
from twinview.data.prepare.pack import pack
from twinview.data.writing.writer import Options
from twinview.errors import DataError
from twinview.recipe import read
from twinview.values import EncoderSpec, Features, Level, Progress
from twinview_probes.classes import Knn, Linear

Write = Callable[[str, Mapping[str, bytes]], Path]
COLORS = {"ant": "red", "bee": "lime", "cat": "blue"}
SIZE = (16, 16)


def encoded(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(file, "PNG")
    return file.getvalue()


def packed(root: Path, names: list[str], empty: tuple[str, ...] = ()) -> str:
    for name in (*names, *empty):
        (root / name).mkdir(parents=True)
    for name in names:
        for n in range(6):
            (root / name / f"{n}.png").write_bytes(encoded(COLORS[name]))
    pack("imagefolder", str(root), root.with_name(f"{root.name}-packed"), Options())
    return str(root.with_name(f"{root.name}-packed"))


class Colors(nn.Module):
    spec = EncoderSpec(pooled=3, cells=Level(3, 16), levels={})

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor, hidden: torch.Tensor | None = None) -> Features:
        cells = images.mean((2, 3), keepdim=True) * self.scale
        return Features(cells=cells, pooled=cells.flatten(1))


def score(toy: dict[str, Any], train: str, val: str, kind: type[Any] = Knn) -> float:
    recipe = read({**toy, "data": {"shards": train, "workers": 0}})
    assembly, found = assemble(recipe), open_data(recipe.data)
    data = cast(Any, Factory(recipe, assembly.dims(assembly.encoder(), len(found)), found))
    probe = kind(val=val, train=train, size=SIZE, **({"k": 3} if kind is Knn else {"steps": 100, "batch": 16, "lr": 0.3}))
    online = Branch(Colors(), {}, {}, {}).eval()
    with torch.no_grad():
        probe.before_epoch(data=data, progress=Progress(0, 1, 0, 0.0))
        (found_score,) = probe.evaluate(branches=Branches(online, online, Colors), data=data).values()
    return float(found_score)


@pytest.mark.parametrize("kind", [Knn, Linear])
def test_a_validation_set_that_lacks_a_class_is_refused_or_numbered_alike(toy: dict[str, Any], tmp_path: Path, kind: type[Any]) -> None:
    train = packed(tmp_path / "train", [*COLORS])
    with pytest.raises(DataError, match=r"class 1 is 'cat' in .*val-packed, and 'bee' in .*train-packed\. Pack both with the same classes: an empty folder counts as one\.$"):
        score(toy, train, packed(tmp_path / "val", ["ant", "cat"]), kind)
    assert score(toy, train, packed(tmp_path / "whole", ["ant", "cat"], empty=("bee",)), kind) == 100
    assert score(toy, train, packed(tmp_path / "fewer", ["ant", "bee"]), kind) == 100, "the first classes have the same numbers"


def test_sources_that_number_other_classes_are_no_one_set(tmp_path: Path) -> None:
    one, other = packed(tmp_path / "one", ["ant", "bee"]), packed(tmp_path / "other", ["ant", "cat"])
    assert class_names(open_shards(one)) == ("ant", "bee")
    shards = Shards(*zip(*((path, found) for source in (one,) for s in [open_shards(source)] for path, found in zip(s.paths, s.indexes))))
    assert class_names(shards) == ("ant", "bee")
    both = cast(Any, type("Both", (), {"paths": (*open_shards(one).paths, *open_shards(other).paths)})())
    with pytest.raises(DataError, match=r"other-packed/manifest\.json and .*one-packed/manifest\.json: number other classes: 1 is 'cat', and 'bee'\."):
        class_names(both)
    (Path(other) / "manifest.json").unlink()
    assert class_names(both) == (), "one of them says nothing"


IDS = {"far apart": [b"20231105", b"99999999999"], "words": [b"ant", b"n01440764\n"], "longer than 63 bits": [b"9" * 30, b"9" * 29 + b"8"], "zeros before": [b"007", b"8"]}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kind", [Knn, Linear])
def test_class_ids_of_any_size_and_spelling(toy: dict[str, Any], write: Write, ids: str, kind: type[Any]) -> None:
    files = {f"{n}.{field}": content for n in range(12) for field, content in (("png", encoded([*COLORS.values()][n % 2])), ("cls", IDS[ids][n % 2]))}
    path = str(write("x.tar", files))
    assert score(toy, path, path, kind) == 100
    shards = open_shards(path)
    assert len({read_class(shards, i) for i in range(12)}) == 2 and shards.classes == (9 if ids == "zeros before" else 0)


@pytest.mark.parametrize("text", [b"", b" ", b"-1"])
def test_what_is_no_class_is_refused(write: Write, text: bytes) -> None:
    with pytest.raises(DataError, match="sample '0': has no class; its field cls holds"):
        read_class(open_shards(str(write("x.tar", {"0.png": encoded("red"), "0.cls": text}))), 0)
