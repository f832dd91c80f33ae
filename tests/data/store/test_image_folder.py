"""A folder of images in place: the samples, the order and the draws of its packed shards, without a copy."""
from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from twinview.api import train
from twinview.assembly import assemble
from twinview.cli import main
from twinview.data.dataset import open as open_module
from twinview.data.dataset.open import open_data, open_shards
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.data.prepare.check import check_shards
from twinview.data.prepare.pack import pack_images
from twinview.data.store import image_folder as module
from twinview.data.store.listing import Listing, listing
from twinview.engine.metrics import read_metrics
from twinview.errors import DataError
from twinview.recipe import read
from twinview.values import Batch

NAMES = ("b.png", "a-b/1.png", "a.x/0.PNG", "a/2.jpeg", "a/c/3.JPG", "a/c.png", "ä b.c/4.webp", "a0.bmp", "Z.png")  # paths' parts and text sort otherwise


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """61 images, some at odd places, and other files beside them."""
    monkeypatch.setenv("TWINVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED", -1.0)  # a folder just made is settled
    for n, name in enumerate([*NAMES, *(f"many/{n:03}.png" for n in range(61 - len(NAMES)))]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    for other in ("notes.txt", "a/.hidden.png", ".DS_Store"):
        (tmp_path / "photos" / other).write_bytes(b"x")
    return tmp_path / "photos"


@pytest.fixture
def in_place(tables: dict[str, Any], photos: Path) -> dict[str, Any]:
    return {**tables, "data": {"shards": f"images:{photos}", "workers": 0}}


def batches(tables: dict[str, Any], *overrides: str, rank: int = 0, world: int = 1, start: int = 0, steps: int = 5) -> list[Batch]:
    recipe = read(tables, overrides)
    assembly, found = assemble(recipe), open_data(recipe.data)
    dims = assembly.dims(assembly.encoder(), len(found), found.classes)
    return list(training_batches(recipe, dims, found, rank=rank, world=world, start=start, steps=steps))


def prints(parts: tuple[Batch, ...]) -> list[Any]:
    return [(key, b.geometry.boxes[n].tolist(), [i[n].sum().item() for i in b.images]) for b in parts for n, key in enumerate(b.keys)]


def joined(tables: dict[str, Any], world: int, workers: int, start: int = 0, steps: int = 5) -> list[list[Any]]:
    ranks = [batches(tables, f"data.workers={workers}", rank=rank, world=world, start=start, steps=steps) for rank in range(world)]
    return [prints(parts) for parts in zip(*ranks, strict=True)]


def test_it_has_the_samples_of_its_shards_in_their_order(photos: Path, tmp_path: Path) -> None:
    packed, found = open_shards(str(pack_images(photos, tmp_path / "packed").out)), open_shards(f"images:{photos}")
    assert len(found) == len(packed) == 61 and found.fields == {"png", "jpg", "webp", "bmp"} and found.classes == 0
    for i in range(61):
        assert found.read(i) == packed.read(i) and found.key_hash(i) == packed.key_hash(i) and found.names(i) == packed.names(i)
    assert found.key(0) == "Z" and found.path(0) == photos / "Z.png" and found.read(0, ("cls",)).fields == {}


def test_training_is_the_same_from_both(in_place: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    packed = {**in_place, "data": {"shards": str(pack_images(photos, tmp_path / "packed").out), "workers": 0}}
    expected = joined(packed, 1, 0)
    for world, workers in ((1, 0), (1, 3), (2, 2), (7, 1)):
        assert joined(in_place, world, workers) == expected
    assert joined(in_place, 2, 1, start=3, steps=2) == expected[3:]


def test_folders_mix_with_shards(in_place: dict[str, Any], shards: list[str], photos: Path) -> None:
    found = open_shards([shards[0], f"images:{photos}/{{a,a-b}}"])
    assert [found.key(i) for i in range(6, len(found))] == ["006", "2", "c/3", "c", "1"] and found.paths[1:] == (photos / "a", photos / "a-b")
    in_place["data"] = {"source": [{"shards": f"images:{photos}", "name": "photos", "weight": 1}, {"shards": shards, "name": "tars", "weight": 3}]}
    expected = joined(in_place, 1, 0)
    assert sum(key.startswith("photos/") for batch in expected[:4] for key, *_ in batch) == 28
    assert joined(in_place, 2, 1) == expected


def test_evaluations_read_folders(in_place: dict[str, Any], photos: Path) -> None:
    recipe = read(in_place)
    assembly, found = assemble(recipe), open_data(recipe.data)
    offers = Factory(recipe, assembly.dims(assembly.encoder(), len(found)), found)
    assert [b.keys for b in offers.plain(f"images:{photos}/a", size=(8, 8))] == [("2", "c/3", "c")]


def test_its_index_is_kept_until_something_changes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []

    def noted(root: Path) -> Listing:
        listed.append(root)
        return listing(root)

    monkeypatch.setattr(module, "listing", noted)

    def opens(anew: bool, count: int = 61) -> None:
        before = len(listed)
        found = open_shards(f"images:{photos}")
        assert len(found) == count and len(listed) - before == anew and all(found.read(i).key == found.key(i) for i in range(count))

    opens(True)
    opens(False)
    (photos / "a/c/new.png").write_bytes((photos / "b.png").read_bytes())
    opens(True, 62)
    opens(False, 62)
    (photos / "a/c/new.png").rename(photos / "a/c/newer.png")
    opens(True, 62)
    (photos / "a/c/newer.png").unlink()
    opens(True)
    other = photos.with_name("other")
    photos.rename(other)
    assert len(open_shards(f"images:{other}")) == 61
    other.rename(photos)
    opens(True)  # another time of change of the root; it could be another folder
    opens(False)
    for kept in (photos.parent / "cache/folders").iterdir():
        kept.write_bytes(b"damaged")
    opens(True)
    open_shards(f"images:{photos}", rebuild=True)
    opens(False)


def test_a_folder_that_has_just_changed_is_indexed_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED", 100.0)
    assert len(open_shards(f"images:{photos}")) == 61 and not (photos.parent / "cache/folders").exists()


def test_a_file_that_is_written_anew_is_noticed_when_it_is_read(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_shards(f"images:{photos}")
    (photos / "b.png").write_bytes(b"another")
    found = open_shards(f"images:{photos}")
    (i,) = (i for i in range(61) if found.key(i) == "b")
    with pytest.raises(DataError, match=re.escape(f"{photos / 'b.png'}: has changed since its folder was indexed (7 bytes, and ")) as caught:
        found.read(i)
    assert str(caught.value).endswith(f"`twinview shards index images:{photos}` indexes it anew.")
    assert main(["shards", "index", f"images:{photos}"]) == 0 and "1 shards, 61 samples" in capsys.readouterr().out
    assert open_shards(f"images:{photos}").read(i).fields["png"] == b"another"


def test_files_that_cannot_be_read_are_bad_samples(in_place: dict[str, Any], photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "b.png").unlink()
    (photos / "b.png").symlink_to(photos / "nowhere.png")
    (photos / "a0.bmp").unlink()
    os.mkfifo(photos / "a0.bmp")
    (photos / "Z.png").write_bytes(b"")
    recipe = read(in_place, ["data.bad_samples=4"])
    assembly, found = assemble(recipe), open_data(recipe.data)
    (photos / "many/007.png").unlink()
    dims = assembly.dims(assembly.encoder(), len(found))
    trained = {key for batch in training_batches(recipe, dims, found, rank=0, world=1, steps=5) for key in batch.keys}
    assert not {"b", "a0", "Z", "many/007"} & trained
    said = " ".join(caplog.messages)
    gone = "was no readable file when its folder was indexed"
    for name, why in (("b.png", gone), ("a0.bmp", gone), ("Z.png", "is an empty file"), ("many/007.png", "cannot be read: No such file")):
        assert f"{photos / name}, sample " in said and why in said
    with pytest.raises(DataError, match="bad_samples lets 0 pass"):
        batches(in_place)


def test_it_goes_to_other_processes_as_arrays(photos: Path) -> None:
    found = open_shards(f"images:{photos}")
    assert [pickle.loads(pickle.dumps(found)).read(i) for i in range(61)] == [found.read(i) for i in range(61)]
    held = attrs.asdict(found.indexes[0], recurse=False)
    assert {name for name, value in held.items() if not isinstance(value, np.ndarray)} == {"root", "fields", "others"}


def test_the_checksum_is_of_names_and_sizes(photos: Path, tmp_path: Path) -> None:
    first = open_shards(f"images:{photos}").checksum
    shutil.copytree(photos, tmp_path / "copy")
    copy = open_shards(f"images:{tmp_path / 'copy'}")
    os.utime(tmp_path / "copy/b.png", ns=(1, 1))
    touched = open_shards(f"images:{tmp_path / 'copy'}", rebuild=True)
    assert copy.checksum == touched.checksum == first and copy.version != touched.version
    with (tmp_path / "copy/b.png").open("ab") as file:
        file.write(b"more")
    assert open_shards(f"images:{tmp_path / 'copy'}", rebuild=True).checksum != first
    (photos / "b.png").rename(photos / "c.png")
    assert open_shards(f"images:{photos}").checksum != first


def test_folders_that_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("x")
    loop, twins = tmp_path / "loop", tmp_path / "twins"
    for made in (loop, twins):
        made.mkdir()
        (made / "x.png").write_bytes(b"1")
    (loop / "inner").symlink_to(loop)
    (twins / "x.jpg").write_bytes(b"1")
    for spec, said in (
        (tmp_path / "none", f"{tmp_path / 'none'}: there is no such folder of images."),
        (tmp_path / "empty", f"{tmp_path / 'empty'}: holds no images (.jpg, .jpeg, .png, .webp, .bmp"),
        (loop, f"{loop / 'inner'}: is a link to a folder that holds it."),
        (twins, f"{twins / 'x.png'}: its key 'x' is that of {twins / 'x.jpg'} too. Rename one of the two."),
    ):
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            open_shards(f"images:{spec}")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=re.escape(f"Of a folder of images write images:{photos}")):
        open_shards(str(photos))
    with pytest.raises(DataError, match="both have a sample"):
        open_shards([f"images:{photos}", f"images:{photos}"])


def test_it_can_be_checked_and_counted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_shards([f"images:{photos}"]).faults == ()
    assert main(["shards", "stat", f"images:{photos}"]) == 0 and "samples     61" in capsys.readouterr().out
    (photos / "b.png").write_bytes(b"another")
    (fault,) = check_shards([f"images:{photos}"]).faults
    assert fault.startswith(f"{photos / 'b.png'}, sample 'b': is no image")


def test_a_run_from_a_folder_has_the_losses_of_one_from_shards(toy: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    toy["run"]["device"] = "cpu"
    losses = []
    for name, spec in (("folder", f"images:{photos}"), ("shards", str(pack_images(photos, tmp_path / "packed").out))):
        train({**toy, "data": {"shards": spec, "workers": 0}}, "run.batch_size=20", "run.steps=7", run=tmp_path / name)
        losses.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == losses[1] and len(losses[0]) == 7
    assert torch.isfinite(torch.tensor(losses)).all()


def test_a_folder_in_place_says_what_it_passes_over(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "more.txt", "film.mp4", "README"):
        (photos / name).write_text("no image")
    (photos / ".thumbnails").mkdir()
    for _ in range(2):  # as it is indexed, and from the index that is kept
        open_module._say_once.cache_clear()
        open_shards(f"images:{photos}")
        said = capsys.readouterr().err
        assert f"images:{photos}: 61 images; 4 other files passed over (2 .txt, 1 .mp4, 1 without a suffix); 1 hidden folder passed over; 2 hidden files passed over" in said
    open_shards(f"images:{photos}")
    assert "passed over" not in capsys.readouterr().err, "once a process"
