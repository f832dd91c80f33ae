"""What a stream promises: equal steps, exact resume, no loss without a word, draws of the sample alone.  And what it does not is refused or said."""
from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinview.api import train
from twinview.assembly import assemble
from twinview.data.dataset.open import open_data, open_shards
from twinview.data.dataset.stream import Stream, tar_samples
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.data.loading.stream_batches import shuffled
from twinview.data.threads import read_ahead
from twinview.engine.checkpoint import steps_in
from twinview.errors import CheckpointError, DataError, RecipeError
from twinview.recipe import read
from twinview.values import Batch

Write = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture
def streamed(tables: dict[str, Any], shards: list[str]) -> dict[str, Any]:
    """61 samples in three shards of 7, 33 and 21, with indexes, as a stream."""
    open_shards(shards)
    return {**tables, "data": {"shards": shards, "workers": 0, "streaming": True, "buffer": 5}, "run": {**tables["run"], "batch_size": 6}}


def batches(tables: dict[str, Any], *overrides: str, rank: int = 0, world: int = 1, start: int = 0, steps: int | None = None) -> list[Any]:
    recipe = read(tables, overrides)
    found = open_data(recipe.data)
    assembly = assemble(recipe)
    dims = assembly.dims(assembly.encoder(), len(found), found.classes)
    return [prints(batch) for batch in training_batches(recipe, dims, found, rank=rank, world=world, start=start, steps=steps)]


def prints(batch: Batch) -> list[Any]:
    return [(key, int(batch.ids[b]), batch.epoch, batch.geometry.boxes[b].tolist()) for b, key in enumerate(batch.keys)]


def test_steps_are_equal_and_the_order_is_a_function_of_ranks_and_workers(streamed: dict[str, Any]) -> None:
    """10 steps an epoch; 2 ranks of 3 micro-samples each; shards of very different sizes."""
    for workers, world in ((0, 1), (0, 2), (3, 1)):
        ranks = [batches(streamed, f"data.workers={workers}", rank=rank, world=world, steps=25) for rank in range(world)]
        assert [len(made) for made in ranks] == [25] * world and all(len(batch) == 6 // world for made in ranks for batch in made)
        assert [epoch for _, _, epoch, _ in (batch[0] for batch in ranks[0])] == [0] * 10 + [1] * 10 + [2] * 5
        again = [batches(streamed, f"data.workers={workers}", rank=rank, world=world, steps=25) for rank in range(world)]
        assert again == ranks
        for start in (10, 17):
            assert [batches(streamed, f"data.workers={workers}", rank=rank, world=world, start=start, steps=4) for rank in range(world)] == [
                made[start : start + 4] for made in ranks
            ]
    assert batches(streamed, "data.workers=1", steps=12) == batches(streamed, steps=12)
    assert batches(streamed, "run.accumulation=2", steps=12) == [
        batch[half : half + 3] for batch in batches(streamed, steps=12) for half in (0, 3)
    ]


def test_coverage_ids_and_shuffling(streamed: dict[str, Any], shards: list[str]) -> None:
    indexed = open_shards(shards)
    whole = [sample for batch in batches(streamed, steps=10) for sample in batch]
    assert len({key for key, *_ in whole}) == 60, "one reader: an epoch has each sample at most once"
    assert all(indexed.key(id) == key for key, id, *_ in whole)
    orders = [[key for batch in batches(streamed, f"run.seed={seed}", start=10 * epoch, steps=10) for key, *_ in batch] for seed, epoch in ((5, 0), (5, 1), (6, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    place = {key: i for i, key in enumerate(orders[0])}
    assert any(place[f"{n:03}"] > place[f"{n + 1:03}"] for n in range(8, 38) if f"{n:03}" in place and f"{n + 1:03}" in place)


def test_a_reader_with_a_short_share_starts_it_over_with_other_draws(streamed: dict[str, Any], shards: list[str]) -> None:
    ranks = [[sample for batch in batches(streamed, rank=rank, world=3, steps=10) for sample in batch] for rank in range(3)]
    assert [len(made) for made in ranks] == [20] * 3
    short = min(ranks, key=lambda made: len({key for key, *_ in made}))
    counts = Counter(key for key, *_ in short)
    assert len(counts) == 7 and set(counts.values()) == {2, 3}, "whole passes: each as often as any other, or once more"
    assert len({str(boxes) for *_, boxes in short}) == 20
    with pytest.raises(DataError, match=r"2 ranks x 2 workers want a shard each, and there are 3\. Write fewer workers, or more shards\.$"):
        batches(streamed, "data.workers=2", world=2, steps=1)
    with pytest.raises(DataError, match="6 is no multiple of 4 ranks"):
        batches(streamed, world=4, steps=1)


def test_draws_are_those_of_the_indexed_way(streamed: dict[str, Any]) -> None:
    def boxes(*overrides: str) -> dict[str, Any]:
        return {key: place for batch in batches(streamed, *overrides, steps=10) for key, _, epoch, place in batch}

    far, near = boxes(), boxes("data.streaming=false", "data.buffer=1000")
    both = set(far) & set(near)
    assert len(both) == 59 or len(both) == 60
    assert all(far[key] == near[key] for key in both)


def test_a_url_with_a_manifest_and_a_pipe_with_a_number(streamed: dict[str, Any], server: Any, photographs: Path, shards: list[str]) -> None:
    from twinview.data.prepare.pack import pack_images

    out = pack_images(photographs, server.folder / "photos").out
    near = batches(streamed, f"data.shards={out}", "run.batch_size=4", steps=7)
    assert batches(streamed, f"data.shards={server.url}/photos", "run.batch_size=4", steps=7) == near
    assert not list((server.folder / "cache").rglob("*.tar")), "nothing is kept"
    name = sorted(path.name for path in out.glob("*.tar"))[2]
    server.answers[f"photos/{name}"] = [503, 0, -1] * 20
    assert batches(streamed, f"data.shards={server.url}/photos", "run.batch_size=4", steps=7) == near, "connections that break are made again"

    pipe = [f"data.shards=pipe:cat {server.folder}/{{a,b,c}}.tar", 'data.allow_pipes=["cat"]']
    with pytest.raises(DataError, match=r"how many samples pipe:cat .*a\.tar has is not known\. Name a folder with its manifest\.json, or write samples = N\.$"):
        batches(streamed, *pipe, steps=1)
    piped = batches(streamed, *pipe, "data.samples=61", steps=10)
    assert [[(key, box) for key, _, _, box in batch] for batch in piped] == [[(key, box) for key, _, _, box in batch] for batch in batches(streamed, steps=10)]
    with pytest.raises(DataError, match=r"\[data\] samples: 60, and the shards have 61"):
        batches(streamed, "data.samples=60", steps=1)


def test_nothing_is_lost_without_a_word(streamed: dict[str, Any], shards: list[str], write: Write, tmp_path: Path) -> None:
    path = Path(shards[1])
    whole, index = path.read_bytes(), open_shards(shards).indexes[1]
    assert [sample.key for sample in tar_samples(path)] == [f"{n:03}" for n in range(7, 40)]
    header = next(offset for _, offset, _ in index.files(20)) - 512

    def fault(data: bytes, said: str) -> None:
        (tmp_path / "d.tar").write_bytes(data)
        with pytest.raises(DataError, match=rf"d\.tar.*{said}"):
            list(tar_samples(tmp_path / "d.tar"))

    fault(whole[:header] + b"garbage!" * 64 + whole[header + 512 :], rf"offset {header}: is no header")
    fault(whole[: header + 600], "cut off")
    fault(whole[:header], "cut off")
    fault(whole[:header] + bytes(1024) + whole[header:], "data follows")
    fault(b"", "the file is empty")
    fault(bytes(10240), "holds no samples")
    left_out = write("d.tar", {name: data for i in range(32) for name, data in ((f"{7 + i:03}.{f}", d) for f, d in open_shards(shards[1]).read(i).fields.items())})
    stream = Stream(paths=(left_out,), counts=(33,), samples=33)
    with pytest.raises(DataError, match=r"d\.tar: has 32 samples, and 33 by its manifest or index"):
        list(stream.read_shard(0))


def test_bad_samples_are_replaced_and_a_resume_has_the_same(streamed: dict[str, Any], shards: list[str], write: Write) -> None:
    good = open_shards(shards)
    path = write("broken.tar", {f"{i:03}.png": good.read(i).fields["png"] if i not in (9, 30) else b"broken" for i in range(61)})
    open_shards(str(path))
    made = batches(streamed, f"data.shards={path}", "data.bad_samples=3", "run.batch_size=3", steps=30)
    assert all(len(batch) == 3 and not {key for key, *_ in batch} & {"009", "030"} for batch in made)
    assert batches(streamed, f"data.shards={path}", "data.bad_samples=3", "run.batch_size=3", start=11, steps=19) == made[11:]
    with pytest.raises(DataError, match=r"broken\.tar, sample '0"):
        batches(streamed, f"data.shards={path}", "run.batch_size=3", steps=30)


def test_the_reservoir_holds_every_item_once() -> None:
    for size in (1, 7, 200):
        found = list(shuffled(range(100), size, np.random.Philox(3)))
        assert sorted(found) == list(range(100)) and found != list(range(100)) and found == list(shuffled(range(100), size, np.random.Philox(3)))
        early = [i - place for place, i in enumerate(found)]
        assert max(early) <= size, "an item comes at most the buffer early"
    lazy = iter(range(100))
    next(iter(shuffled(lazy, 50, np.random.Philox(3))))
    assert next(lazy) <= 8, "the first comes before the buffer is full"


def test_what_is_read_ahead_comes_in_order_with_its_faults_and_ends_with_its_reader() -> None:
    closed = []

    def items() -> Any:
        try:
            yield from range(30)
            raise DataError("the end")
        finally:
            closed.append(True)

    found = []
    with pytest.raises(DataError, match="the end"):
        for item in read_ahead(items(), 4):
            found.append(item)
    assert found == list(range(30)) and closed == [True]
    assert list(read_ahead((n for n in range(9)), 4)) == list(range(9))
    reader = read_ahead(items(), 4)
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    reader.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 5
    while len(closed) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert closed == [True, True]


def test_a_run_resumes_to_the_bit_and_refuses_other_readers(
    streamed: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, shards: list[str]
) -> None:
    kept = {key: value for key, value in streamed.items() if key not in ("augment", "masks")}
    table = {**kept, "views": {"use": "toy.views"}, "run": {**streamed["run"], "steps": 14, "checkpoint_every": 7}}
    whole = train(table, run=tmp_path / "whole")
    assert sum("the order depends on ranks and workers" in record.getMessage() for record in caplog.records) >= 1
    for step in steps_in(tmp_path / "whole" / "checkpoints"):
        assert step in (7, 14)
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-000014")
    (tmp_path / "half" / "checkpoints" / "latest").write_text("step-000007")
    with pytest.raises(CheckpointError, match=r"streamed by 1 ranks x 1 workers x 1 micro-batches and 1 ranks x 2 workers x 1 micro-batches: they change only between epochs \(the next ends at step 10\)"):
        train(table, "data.workers=2", run=tmp_path / "half", resume=True)
    assert train(table, run=tmp_path / "half", resume=True).loss == whole.loss
    assert json.loads((tmp_path / "half" / "manifest.json").read_text())["data"]["streamed"] is True
    assert (tmp_path / "whole" / "pictures" / "views.png").is_file()


def test_what_does_not_go_with_a_stream(streamed: dict[str, Any], shards: list[str]) -> None:
    for override, said in (("data.window=2", "streaming goes with none of"), ("data.held_out=0.1", "streaming goes with none of")):
        with pytest.raises(RecipeError, match=said):
            read(streamed, [override])
    with pytest.raises(RecipeError, match=r"samples and buffer are of streaming\. Write streaming = true"):
        read(streamed, ["data.streaming=false"])
    recipe = read(streamed)
    found = open_data(recipe.data)
    assembly = assemble(recipe)
    data = Factory(recipe, assembly.dims(assembly.encoder(), len(found), found.classes), found)
    with pytest.raises(DataError, match=re.escape("cannot be read by number. Name shards for the evaluation to read.")):
        data.plain(size=(8, 8))
    assert sum(len(batch.keys) for batch in data.plain(shards[0], size=(8, 8))) == 7
    assert sum(len(batch.keys) for batch in data.views(2)) == 60
    with pytest.raises(DataError, match="cannot be read by number"):
        found.numbered()
