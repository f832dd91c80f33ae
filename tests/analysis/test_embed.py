"""`twinview embed` and `twinview.load`: any target, any file, parts that go on, duplicates that are found."""
from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from processes import Processes

import twinview
from twinview.analysis.features import embed as work
from twinview.analysis.features.choose import Chosen
from twinview.analysis.features.files import FeatureFile, Part, read, write
from twinview.analysis.features.same_picture import match, small
from twinview.analysis.targets import find_target
from twinview.analysis.transform import Transform
from twinview.cli import main
from twinview.engine.distributed.launch import launch
from twinview.errors import CheckpointError, DataError, RecipeError
from twinview_tiny import Net

RESNET = "torchvision:resnet18,weights="
VIT = "timm:vit_tiny_patch16_224,weights=,depth=2,width=48,heads=3,patch=8,img_size=32"


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Shapes of many sizes: no two alike, and a cut tells where it is from."""
    rng = np.random.default_rng(seed)
    layers = [np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC), float) for n in (4, 9, 17)]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


@pytest.fixture(scope="module")
def run(photo_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table: dict[str, Any] = {
        "views": {"use": "byol.crops", "size": 32}, "encoder": {"use": "torchvision.resnet", "width": 8}, "loss": [{"use": "byol.image", "hidden": 8, "channels": 4}],
        "data": {"shards": photo_shards, "workers": 0, "mean": [0.4, 0.5, 0.6]}, "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"steps": 1, "batch_size": 4, "device": "cpu"},
    }
    return twinview.train(table, run=tmp_path_factory.mktemp("runs") / "run").folder


def test_a_loaded_run_takes_pictures_of_every_kind(run: Path, photographs: Path, tmp_path: Path) -> None:
    encoder = twinview.load(run)
    path = photographs / "photo00.jpg"
    opened = Image.open(path)
    x = encoder.transform(opened)
    assert x.shape == (3, 32, 32) and x.dtype == torch.float32
    array = np.array(opened)
    assert torch.equal(x, encoder.transform(array)) and torch.equal(x, encoder.transform(torch.from_numpy(array).permute(2, 0, 1)))
    assert (x - encoder.transform(path)).abs().max() < 0.05  # another decoder of JPEG
    assert encoder(x[None]).pooled is not None
    batch = torch.from_numpy(array).permute(2, 0, 1)[None, :, :32, :32]
    expected = (batch.float() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(-1, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    assert torch.allclose(encoder.normalize(batch), expected, atol=1e-5)
    target = twinview.load(run, branch="target")
    assert not torch.equal(target.conv1.weight, encoder.conv1.weight)  # type: ignore[union-attr,arg-type]
    for wrong, said in ((np.zeros((8, 8, 2), np.uint8), "of 2 channels"), (torch.zeros(3, 8, 8), "not float32"), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "one image")):
        with pytest.raises(DataError, match=said):
            encoder.transform(wrong)
    with pytest.raises(DataError, match="normalize: takes"):
        encoder.normalize(torch.zeros(2, 4, 8, 8))
    out = tmp_path / "exported.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    exported = twinview.load(out)
    with torch.no_grad():
        a, b = encoder(x[None]).pooled, exported(x[None]).pooled
    assert torch.allclose(a, b, atol=1e-6)
    assert exported.transform == encoder.transform
    out.with_suffix(".json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged one"):
        twinview.load(out)


@pytest.mark.parametrize("name, said", [
    ("tim:resnet18", "Did you mean 'timm'"), ("nowhere/run", "no such run or file"), ("a.safetensors", "no such file"), ("timm:resnot18,weights=", "resnot18"),
    ("timm:resnet18,weights=,cels=c3", "cels"), ("torchvision:resnet18,weights=NONE_V9", "NONE_V9"),
])  # fmt: skip
def test_a_target_that_is_none_says_what_is(name: str, said: str) -> None:
    with pytest.raises((RecipeError, CheckpointError), match=said) as fault:
        find_target(name).loaded()
    assert "\n" not in str(fault.value)


def test_features_go_to_every_kind_of_file_and_come_back(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dict[str, FeatureFile]()
    for suffix in (".npy", ".parquet", ".h5"):
        names = "pooled" if suffix == ".npy" else "pooled,cells,c3.mean"
        words = ["embed", RESNET, str(photographs), "--out", str(tmp_path / f"f{suffix}"), "--features", names, "--size", "64", "--workers", "0", "--json"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 12
        found[suffix] = twinview.read_features(tmp_path / f"f{suffix}")
    same = found[".parquet"]
    assert same.keys == [f"photo{i:02}" for i in range(12)] == found[".npy"].keys == found[".h5"].keys
    assert same.features["cells"].shape == (12, 512, 2, 2) and same.features["c3.mean"].shape == (12, 128) and same.about["size"] == [64, 64]
    for one in found.values():
        assert np.array_equal(one.features["pooled"], same.features["pooled"])
    encoder = twinview.load(RESNET)
    with torch.no_grad():
        own = torch.stack([encoder(encoder.transform(photographs / f"{key}.jpg", size=64)[None]).at("pooled")[0] for key in same.keys])
    assert np.abs(same.features["pooled"] - own.numpy()).max() < 1e-5
    memory = twinview.embed(RESNET, photographs, size=(64, 64), workers=0, half=True)
    assert not isinstance(memory, int) and memory.features["pooled"].dtype == np.float16
    for words, said in (
        (["--out", "x.csv"], "ends in .npy, .parquet, .h5"), ([], "--out features.parquet"), (["--out", "x.npy", "--features", "pooled,cells"], "holds one array"),
        (["--out", "x.h5", "--features", "pool"], "Did you mean 'pooled'"), (["--out", "x.h5", "--ranks", "0"], "--ranks"),
    ):  # fmt: skip
        assert main(["embed", RESNET, str(photographs), *words]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_parts_that_cannot_be_read_are_computed_anew(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power failure may leave of one."""
    monkeypatch.setattr(work, "PART", 5)
    target, images, out = find_target(RESNET), work.open_images(photographs), tmp_path / "f.npy"
    options = work.Options(size=(32, 32), workers=0, batch_size=2)
    monkeypatch.setattr(work, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # every part is there, the file is not
    with pytest.raises(KeyboardInterrupt):
        work.embed_to(target, images, out, options)
    (tmp_path / "f.npy.parts/part-000001.npz").write_bytes(b"")
    monkeypatch.undo()
    monkeypatch.setattr(work, "PART", 5)
    assert work.embed_to(target, images, out, options) == 12
    assert np.allclose(np.load(out), work.embed(target, images, options).features["pooled"])


def test_bad_images_of_all_sittings_count(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PART", 5)
    shutil.copytree(photographs, tmp_path / "images")
    for name in ("photo02.jpg", "photo08.jpg"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    target, images, out = find_target(RESNET), work.open_images(tmp_path / "images"), tmp_path / "f.npy"
    options = work.Options(size=(32, 32), workers=0, batch_size=2, bad_images=1)
    with pytest.raises(DataError, match="lets 1 pass, and this is one more"):  # by then the first part is there, with one of them
        work.embed_to(target, images, out, options)
    for _ in range(2):
        with pytest.raises(DataError, match="2 images were left out, and bad_images=1 lets 1 pass"):
            work.embed_to(target, images, out, options)
    assert work.embed_to(target, images, out, attrs.evolve(options, bad_images=2)) == 10


def ranks_with_other_weights(images: Path, out: Path) -> int:
    """The run goes on while it is embedded: one rank finds a later checkpoint than another."""

    def rank() -> int:
        torch.manual_seed(int(os.environ["RANK"]))
        target: Any = SimpleNamespace(encoder=Net(4, 3).eval(), transform=Transform(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3), described={})
        return work.embed_to(target, work.open_images(images), out, work.Options(workers=0, device="cpu"))

    found: int = launch(2, rank, device="cpu")
    return found


def test_ranks_that_found_other_weights_say_so(photographs: Path, tmp_path: Path, processes: Processes) -> None:
    with pytest.raises(AssertionError, match="ranks found other weights or other images. Name a checkpoint with --step"):
        processes.call(ranks_with_other_weights, photographs, tmp_path / "f.npy")
    assert not (tmp_path / "f.npy").exists()


def test_tokens_of_chosen_blocks() -> None:
    target = find_target(VIT)
    images = torch.randn(2, 3, 32, 32)
    choose = Chosen(target.encoder, ("token", "token.0", "token.-1", "pooled"))
    found = choose(images)
    with torch.no_grad():
        encoder: Any = target.encoder
        whole = encoder(images)
        assert torch.allclose(found["token"], whole.tokens[:, 0]) and torch.allclose(encoder.norm(found["token.-1"]), whole.tokens[:, 0], atol=1e-5)
    assert not torch.allclose(found["token.0"], found["token.-1"])
    choose.close()
    for name in ("token.2", "token.N", "c2"):
        with pytest.raises(RecipeError):
            Chosen(target.encoder, (name,))


def test_what_a_kill_left_goes_on_and_other_options_start_anew(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PART", 5)
    target, images, out = find_target(RESNET), work.open_images(photographs), tmp_path / "f.npy"
    options = work.Options(size=(32, 32), workers=0, batch_size=2)
    real, calls = np.savez, list[int]()

    def killed(*args: Any, **words: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args, **words)

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        work.embed_to(target, images, out, options)
    assert len(list((tmp_path / "f.npy.parts").glob("part-*.npz"))) == 2 and not out.exists()
    assert work.embed_to(target, images, out, options) == 12 and len(calls) == 4  # one part alone was left to do
    assert not (tmp_path / "f.npy.parts").exists()
    assert np.allclose(np.load(out), work.embed(target, images, options).features["pooled"])
    (tmp_path / "f.npy.parts").mkdir()
    (tmp_path / "f.npy.parts" / "fingerprint").write_text("of something else")
    assert work.embed_to(target, images, out, options) == 12 and len(calls) == 7


def test_images_that_do_not_decode_are_left_out_and_named(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        (tmp_path / f"good{i}.jpg").write_bytes((photographs / f"photo0{i}.jpg").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    words = ["embed", RESNET, str(tmp_path), "--size", "32", "--workers", "0", "--out", str(tmp_path / "f.h5")]
    assert main(words) == 0
    assert "broken" in capsys.readouterr().err and read(tmp_path / "f.h5").keys == ["good0", "good1", "good2"]
    assert main([*words, "--bad-images", "0"]) == 2
    assert "broken" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    for suffix in (".npy", ".parquet", ".h5"):
        (tmp_path / f"f{suffix}").write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match="damaged"):
            read(tmp_path / f"f{suffix}")
    parts = (Part([f"k{n}"], {"pooled": np.full((1, 3), n, np.float32)}) for n in range(3))
    write(tmp_path / "g.h5", parts, 3, {"features": ["pooled"]})
    assert read(tmp_path / "g.h5").features["pooled"][:, 0].tolist() == [0, 1, 2]


def test_planted_copies_are_found_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(16):
        picture(i).save(folder / f"p{i:02}.png")
    picture(3).save(folder / "q_jpeg.jpg", quality=30)
    ImageOps.mirror(picture(5)).save(folder / "q_mirror.png")
    picture(7).crop((5, 4, 89, 67)).save(folder / "q_cut.png")
    picture(9).resize((48, 36)).save(folder / "q_small.png")
    out = tmp_path / "curated"
    assert main(["embed", RESNET, str(folder), "--duplicates", str(out), "--size", "64", "--workers", "0", "--threshold", "0.93"]) == 0
    assert "4 copies in 4 groups" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "duplicates.csv").open()))
    groups = {row["group"]: {r["key"]: r for r in rows if r["group"] == row["group"]} for row in rows}
    assert sorted(sorted(g) for g in groups.values()) == [["p03", "q_jpeg"], ["p05", "q_mirror"], ["p07", "q_cut"], ["p09", "q_small"]]
    said = {row["key"]: (row["role"], row["kind"]) for row in rows}
    assert said["q_cut"] == ("copy", "cut") and said["p07"][0] == "keep" and said["q_small"][0] == "copy" and said["q_mirror"][1] == "mirrored"
    assert len((out / "keep.txt").read_text().splitlines()) == 16
    for name in ("duplicates.png", "outliers.png"):
        assert Image.open(out / name).width > 200


def test_the_correlation_tells_a_cut_from_another_picture() -> None:
    transform = Transform(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    whole, other = (small(transform.pixels(picture(seed))) for seed in (1, 2))
    cut = small(transform.pixels(ImageOps.mirror(picture(1).crop((20, 10, 80, 58)))))
    found = match(cut, whole)
    assert found.correlation > 0.95 and found.mirrored and abs(found.share - (60 * 48) / (96 * 72)) < 0.08
    assert match(whole, other).correlation < 0.9
    flat = np.full((48, 36), 100, np.float32)
    assert match(flat, whole).correlation == -1


@pytest.mark.parametrize(("variable", "value"), [("WORLD_SIZE", "2"), ("RANK", "1")])
def test_duplicates_under_a_launcher_are_refused_before_features_are_written(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    out = tmp_path / "features.parquet"
    assert main(["embed", RESNET, str(photographs), "--out", str(out), "--duplicates", str(tmp_path / "twins"), "--size", "64", "--workers", "0"]) == 2
    assert "--duplicates: is looked for in one process. Leave the launcher out." in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("place", ["", "curated", "deep/er"])
@pytest.mark.parametrize("spec", ["{}", "images:{}"])
def test_duplicates_are_not_written_among_the_images(place: str, spec: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(photographs, photos)
    before = sorted(photos.rglob("*"))
    words = ["embed", RESNET, spec.format(photos), "--duplicates", str(photos / place), "--size", "64", "--workers", "0"]
    assert main(words) == 2
    assert "pictures written there would be among them. Name a folder beside it." in capsys.readouterr().err.splitlines()[-1]
    assert sorted(photos.rglob("*")) == before


def test_features_take_the_place_of_earlier_ones_and_of_nothing_else(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", RESNET, str(photographs), "--size", "32", "--workers", "0", "--out"]
    for suffix in (".npy", ".parquet", ".h5"):
        for _ in range(2):
            assert main([*words, str(tmp_path / f"f{suffix}")]) == 0
    capsys.readouterr()
    for name, kept in (("g.npy", "g.npy"), ("g.npy", "g.json"), ("g.npy", "g.keys.txt"), ("g.parquet", "g.parquet"), ("g.h5", "g.h5")):
        folder = tmp_path / f"of-{kept}"
        folder.mkdir()
        (folder / kept).write_text("{}")
        assert main([*words, str(folder / name)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"{folder / kept}: is there already, and `twinview embed` did not write it. Name another place" in line
        assert [path.name for path in folder.iterdir()] == [kept] and (folder / kept).read_text() == "{}"
