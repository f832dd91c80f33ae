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
from twinview.data.dataset.classes import missing_classes
from twinview.data.dataset.open import open_data, open_shards
from twinview.data.dataset.overlap import shared_samples
from twinview.data.dataset.read import read_class
from twinview.data.dataset.shards import Shards
from twinview.data.dataset.statistics import class_names
from twinview.data.loading.factory import Factory
from twinview.data.prepare.pack import pack
from twinview.data.writing.writer import Options
from twinview.engine.setup import check_classes
from twinview.errors import DataError, RecipeError
from twinview.recipe import read
from twinview.recipe.tables import HELD_OUT, Data, Source
from twinview.values import EncoderSpec, Features, Level, Progress
from twinview_probes.classes import FewShot, Knn, Linear

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


def factory_of(toy: dict[str, Any], shards: str, **more: Any) -> Factory:
    recipe = read({**toy, "data": {"shards": shards, "workers": 0, **more}})
    assembly, found = assemble(recipe), open_data(recipe.data)
    return Factory(recipe, assembly.dims(assembly.encoder(), len(found)), found)


def score(toy: dict[str, Any], train: str, val: str, kind: type[Any] = Knn) -> float:
    data = cast(Any, factory_of(toy, train))
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


def numbered(texts: list[bytes | None], start: int = 0) -> dict[str, bytes]:
    """A picture for each text, which its field cls holds; None: it has no such field."""
    files = {f"{n}.{field}": content for n, text in enumerate(texts, start) for field, content in (("png", encoded("red")), ("cls", text))}
    return {name: content for name, content in files.items() if content is not None}


FAULTY: list[tuple[list[bytes | None], str]] = [
    ([b"1", b"cat", b"1"], "sample '1': its field cls holds b'cat', which is no number from 0 to 2**20"),
    ([b"1", b"1", b"-1"], "sample '2': its field cls holds b'-1', which is no number from 0 to 2**20"),
    ([b"1", b"1048576"], "sample '1': its field cls holds b'1048576', which is no number from 0 to 2**20"),
    ([b"1", None, b"1"], "sample '1': has no class (field cls)"),
    ([None, None], "the shards of [data] hold no class numbers (field cls, from 0 to 2**20)"),
]


@pytest.mark.parametrize(("texts", "said"), FAULTY)
def test_the_first_sample_without_a_class_number_is_named(toy: dict[str, Any], write: Write, texts: list[bytes | None], said: str) -> None:
    write("a.tar", numbered([b"1"], start=50))
    path = write("b.tar", numbered(texts))
    alone = missing_classes(open_shards(str(path)))
    assert alone == (said if said.startswith("the shards") else f"{path}, {said}")
    shards = open_data(Data(shards=[str(path.with_name("a.tar")), str(path)]))
    made = assemble(read({**toy, "loss": [{"use": "supervised.classes"}], "evaluate": [{"use": "probes.knn", "val": str(path), "size": SIZE}]}))
    faulty = f"{path}, {said}" if any(texts) else f"{path}, sample '0': has no class (field cls)"
    with pytest.raises(RecipeError) as caught:
        check_classes(made, shards)
    instead = "Give every sample a class number (field cls), or leave this part out."
    assert str(caught.value) == f"[[loss]] supervised.classes: needs labels, and {faulty}. {instead}"


def test_the_source_without_class_numbers_is_named(write: Write) -> None:
    some, none = write("some.tar", numbered([b"1", b"0"])), write("none.tar", numbered([None, None], start=10))
    mixed = open_data(Data(source=[Source(shards=str(some), name="some"), Source(shards=str(none), name="none")]))
    assert mixed.classes == 0
    assert missing_classes(mixed) == "[[data.source]] none holds no class numbers (field cls, from 0 to 2**20)"
    word = write("word.tar", numbered([b"1", b"cat"], start=20))
    mixed = open_data(Data(source=[Source(shards=str(some), name="some"), Source(shards=str(word), name="word")]))
    assert missing_classes(mixed) == f"{word}, sample '21': its field cls holds b'cat', which is no number from 0 to 2**20"


# ---- scoring what was learned from
def test_samples_that_two_sets_share(write: Write) -> None:
    a, b = (write(f"{name}.tar", numbered([b"1"] * 20, start=start)) for name, start in (("a", 0), ("b", 100)))
    one, other, both = open_shards(str(a)), open_shards(str(b)), open_shards([str(b), str(a)])
    assert shared_samples(one, one) == 20 and shared_samples(one, other) == 0 and shared_samples(one, both) == shared_samples(both, one) == 20
    copied = write("copy.tar", numbered([b"1"] * 20))
    assert shared_samples(open_shards(str(copied)), one) == 20, "the same set, wherever it lies"
    kept = open_data(Data(shards=[str(a), str(b)], held_out=0.25))
    assert kept.held_out is not None and shared_samples(kept.held_out, kept) == 0
    assert shared_samples(one, kept) + shared_samples(one, kept.held_out) == 20 and shared_samples(both, kept) == len(kept)
    some = open_data(Data(source=[Source(shards=str(a), name="x", subset=7), Source(shards=str(b), name="y")]))
    assert shared_samples(some, one) == 7 and shared_samples(one, some) == 7


def test_scoring_what_was_learned_from_is_said(toy: dict[str, Any], write: Write, caplog: pytest.LogCaptureFixture) -> None:
    names = {f"{n}.{field}": content for n in range(12) for field, content in (("png", encoded([*COLORS.values()][n % 2])), ("cls", b"01"[n % 2 :][:1]))}
    path, other = str(write("x.tar", names)), str(write("y.tar", {f"y{name}": content for name, content in names.items()}))
    assert score(toy, path, other) == 100 and not caplog.messages
    assert score(toy, path, path) == 100
    said = f"[[evaluate]] probes.knn: 12 images of val = {path!r} are among those that it learns from (train = {path!r}), and its score says little of others."
    (line,) = caplog.messages
    assert line == f'{said} Write another val; or train with data.held_out=0.1, and write val="held-out".'
    caplog.clear()
    data = cast(Any, factory_of(toy, path, held_out=0.3))
    for val, said in ((path, "train is empty: the run's own"), (HELD_OUT, "")):
        Knn(val=val, size=SIZE).before_epoch(data=data, progress=Progress(0, 1, 0, 0.0))
        assert (said in "".join(caplog.messages)) if said else not caplog.messages
        caplog.clear()
    FewShot(val=path, train=path, size=SIZE, per_class=1).before_epoch(data=data, progress=Progress(0, 1, 0, 0.0))
    assert not caplog.messages, "it learns from a few"
