"""Several sources as one: exact shares, each sample as often as the next, the same for any ranks and workers; what is held out stays out."""
from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset import keyed_order, sorted_order
from twinview.data.dataset.base import Samples
from twinview.data.dataset.mixture import Mixture
from twinview.data.dataset.open import open_data
from twinview.data.dataset.order import BatchSampler, shares
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import ViewDataset
from twinview.data.rng import key_hash
from twinview.data.store import catalog
from twinview.errors import DataError, RecipeError
from twinview.recipe import Recipe, read
from twinview.values import Batch, Dims

Write = Callable[[str, Mapping[str, bytes]], Path]
weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=4)


def starts(counts: Sequence[int]) -> Any:
    return np.cumsum([0, *counts])


# ---- the order
@given(weights, st.integers(0, 10**6))
def test_shares_are_whole_and_within_one_of_exact(given_: list[float], count: int) -> None:
    found = shares(tuple(given_), count)
    assert sum(found) == count
    assert all(abs(n - count * w / sum(given_)) < 1 + 1e-6 for n, w in zip(found, given_))


def test_shares_go_to_the_largest_remainders() -> None:
    assert shares((1, 1, 1), 8) == [3, 3, 2] and shares((0.5, 0.3, 0.2), 9) == [4, 3, 2] and shares((0.1, 0.2), 3) == [1, 2]


def mixed_order(number: int, **given_: Any) -> Any:
    return (sorted_order, keyed_order)[number - 1].Mixed(**given_)


def read_epoch(order: Any, epoch: int, count: int) -> Any:
    return order.epoch(epoch, count)[:count]


both = pytest.mark.parametrize("number", [1, 2])
sources = st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0.2, 5)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sources, st.integers(0, 2**62), st.integers(0, 5), st.integers(1, 12), st.sampled_from([1, 2]), st.sampled_from([7, 1 << 14]))
def test_every_epoch_has_each_sources_share_and_every_sample_its_turn(
    given_: list[tuple[list[int], float]], seed: int, window: int, epochs: int, number: int, block: int
) -> None:
    with mock.patch.object(keyed_order, "BLOCK", block):
        check_turns(given_, seed, window, epochs, number)


def check_turns(given_: list[tuple[list[int], float]], seed: int, window: int, epochs: int, number: int) -> None:
    order = mixed_order(number, starts=tuple(starts(counts) for counts, _ in given_), weights=tuple(w for _, w in given_), seed=seed, window=window)
    firsts = starts([sum(counts) for counts, _ in given_])
    count, read_ = order.samples - order.samples // 4, Counter[int]()
    for epoch in range(epochs):
        numbers = read_epoch(order, epoch, count)
        again, index = np.divmod(numbers, order.samples)
        assert np.histogram(index, firsts)[0].tolist() == shares(order.weights, count)
        assert len(set(numbers.tolist())) == count, "a sample that comes again has another number"
        seen = Counter[int]()
        for n, i in zip(again.tolist(), index.tolist()):
            assert n == seen[i], "repeats are counted in the order in which they come"
            seen[i] += 1
        read_.update(seen)
        assert np.array_equal(numbers, read_epoch(order, epoch, count))
        parts = [order.epoch(epoch, count)[at : at + 5] for at in range(0, count, 5)]
        assert np.array_equal(numbers, np.concatenate([numbers[:0], *parts])), "any part by itself"
    for first, last in pairwise(firsts):
        each = [read_[i] for i in range(first, last)]
        assert max(each) - min(each) <= 1


@both
def test_a_window_holds_within_each_source(number: int) -> None:
    given_ = mixed_order(number, starts=(starts([5] * 6), starts([4] * 5)), weights=(1.0, 2.0), seed=3, window=2)
    for source, size in ((0, 5), (1, 4)):
        read_ = np.concatenate([read_epoch(given_, epoch, 48) for epoch in range(4)]) % 50
        own = read_[read_ < 30] if source == 0 else read_[read_ >= 30] - 30
        length = 30 if source == 0 else 20
        for at in range(0, len(own) - length + 1, length):
            one_pass = own[at : at + length]
            assert sorted(one_pass) == list(range(length))
            shards = (one_pass // size).tolist()
            blocks = [set(shards[k : k + 2 * size]) for k in range(0, length, 2 * size)]
            assert all(len(block) <= 2 for block in blocks) and len(set().union(*blocks)) == length // size


def test_the_order_of_a_mixture_is_the_same_in_every_version() -> None:
    given_ = {"starts": (starts([700, 300]), starts([50])), "weights": (1.0, 3.0), "seed": 3}
    made = [mixed_order(number, **given_, window=window) for number in (1, 2) for window in (0, 1)]
    found = [hashlib.sha256(read_epoch(o, 4, 1000).astype("<i8").tobytes()).hexdigest()[:16] for o in made]
    assert found == ["f1c0f346fca44084", "69999c9bbe5ccd6e", "522d16646a0140a3", "0a7e7d3ba96d67a3"]


@both
def test_turns_and_places_are_uniform(number: int) -> None:
    """Samples of a source of 6 with half its share lie anywhere equally often, whatever the other's (chi-square, 11 degrees: 99.9 % below 31)."""
    order, places = mixed_order(number, starts=(starts([6]), starts([6])), weights=(1.0, 1.0), seed=1), np.zeros((12, 12))
    for epoch in range(1200):
        places[read_epoch(order, epoch, 12) % 12, np.arange(12)] += 1
    for row in places:
        assert ((row - 100) ** 2 / 100).sum() < 31.3


@both
def test_a_plan_reads_a_mixture_to_the_last_sample(number: int) -> None:
    order = mixed_order(number, starts=(starts([30]), starts([31])), weights=(2.0, 1.0), seed=0)
    plan = BatchSampler(order=order, global_batch=14, accumulation=1, rank=0, world=1)
    places = [place for batch in plan.batches(0, 8) for place in batch]
    assert [epoch for epoch, _ in places] == [0] * 56 + [1] * 56
    assert sum(number % 61 < 30 for epoch, number in places if epoch == 0) == 37  # of 56, 37.3


# ---- the samples
@pytest.fixture
def mixed(tables: dict[str, Any], shards: list[str]) -> dict[str, Any]:
    """Three sources: 7, 33 and 21 samples, the first four times as often as its size."""
    named = [{"name": name, "shards": path} for name, path in zip("abc", shards)]
    data = {"source": [{**one, "weight": weight} for one, weight in zip(named, (28, 33, 21))], "workers": 0}
    return {**tables, "data": data}


def opened(recipe: Recipe) -> tuple[Dims, Samples]:
    assembly, found = assemble(recipe), open_data(recipe.data).numbered()
    return assembly.dims(assembly.encoder(), len(found), found.classes), found


def batches(tables: dict[str, Any], *overrides: str, rank: int = 0, world: int = 1, start: int = 0, steps: int | None = None) -> list[Batch]:
    recipe = read(tables, overrides)
    return list(training_batches(recipe, *opened(recipe), rank=rank, world=world, start=start, steps=steps))


def prints(batch: Batch) -> list[Any]:
    """Each sample of a batch, as something that can be compared."""
    seeds = batch.seeds.tolist()
    return [(key, seeds[b], batch.geometry.boxes[b].tolist(), [i[b].sum().item() for i in batch.images]) for b, key in enumerate(batch.keys)]


def joined(tables: dict[str, Any], world: int, workers: int, start: int, steps: int) -> list[list[Any]]:
    ranks = [batches(tables, f"data.workers={workers}", rank=rank, world=world, start=start, steps=steps) for rank in range(world)]
    return [[sample for batch in parts for sample in prints(batch)] for parts in zip(*ranks, strict=True)]


def test_global_batches_of_a_mixture_are_identical(mixed: dict[str, Any]) -> None:
    """Two steps an epoch; then a resume in the middle of the second."""
    mixed["data"] |= {"held_out": 5, "window": 1}
    expected = joined(mixed, 1, 0, 0, 5)
    for world, workers in ((1, 3), (2, 2), (7, 1)):
        assert joined(mixed, world, workers, 0, 5) == expected
    assert joined(mixed, 2, 1, 3, 2) == expected[3:]


def test_a_sample_that_comes_again_is_drawn_anew(mixed: dict[str, Any]) -> None:
    epoch = [sample for batch in batches(mixed, steps=2) for sample in prints(batch)]
    by_key: dict[str, list[Any]] = {}
    for key, *drawn in epoch:
        by_key.setdefault(key, []).append(drawn)
    sizes = Counter(key.partition("/")[0] for key, *_ in epoch)
    assert sizes == {"a": 19, "b": 23, "c": 14}  # of 56: 19.1, 22.5, 14.3
    assert sorted(len(drawn) for key, drawn in by_key.items() if key[0] == "a") == [2, 2, 3, 3, 3, 3, 3]
    assert all(len({str(part) for part in column}) == len(drawn) for drawn in by_key.values() for column in zip(*drawn))
    assert all(drawn[0][0] == key_hash(key) for key, drawn in by_key.items())


def test_the_first_time_is_drawn_as_ever(tables: dict[str, Any], shards: list[str]) -> None:
    recipe = read(tables)
    dims, plain = opened(recipe)
    one = read({**tables, "data": {"source": [{"shards": shards, "weight": 1}], "workers": 0}})
    views = ViewDataset(one, dims, open_data(one.data).numbered())
    for i in (0, 60):
        once, same, again = ViewDataset(recipe, dims, plain)[0, i], views[0, i], views[0, i + 61]
        assert torch.equal(once.geometry.boxes, same.geometry.boxes) and torch.equal(once.images[0], same.images[0]) and once.seed == same.seed
        assert not torch.equal(once.geometry.boxes, again.geometry.boxes) and once.seed != again.seed and (once.key, once.id) == (again.key, again.id)


def test_frozen_draws_freeze_each_repeat(mixed: dict[str, Any]) -> None:
    recipe = read(mixed, ["data.frozen_draws=true"])
    dims, found = opened(recipe)
    views = ViewDataset(recipe, dims, found)
    assert torch.equal(views[0, 3].geometry.boxes, views[5, 3].geometry.boxes) and torch.equal(views[0, 64].images[0], views[5, 64].images[0])
    assert not torch.equal(views[0, 3].geometry.boxes, views[0, 64].geometry.boxes)


def test_sources_without_weights_are_as_one_list(tables: dict[str, Any], shards: list[str]) -> None:
    listed = [prints(b) for b in batches(tables, "data.window=2", steps=5)]
    apart = {**tables, "data": {"source": [{"shards": shards[:1]}, {"shards": shards[1:]}], "workers": 0}}
    assert [prints(b) for b in batches(apart, "data.window=2", steps=5)] == listed


def test_names_stand_before_keys(mixed: dict[str, Any], shards: list[str]) -> None:
    found = open_data(read(mixed).data).numbered()
    assert (found.key(0), found.key(7), found.key(60)) == ("a/000", "b/007", "c/060") and found.key_hash(7) == key_hash("b/007")
    assert found.read(7).key == "b/007" and found.read(7, ("cls",)).fields == {"cls": b"2"} and found.names(7) == ["png", "cls", "seg.png"]
    assert str(found.path(7)) == shards[1] and found.classes == 5 and len(found.paths) == 3
    copy: Samples = pickle.loads(pickle.dumps(found))
    assert [copy.read(i) for i in range(61)] == [found.read(i) for i in range(61)] and copy.checksum == found.checksum


def test_one_key_in_two_sources(tables: dict[str, Any], shards: list[str], write: Write) -> None:
    twin = write("twin.tar", {"013.png": b"1"})
    apart: list[dict[str, Any]] = [{"shards": shards}, {"shards": str(twin)}]
    said = f"{shards[1]} and {twin}: both have a sample '013'. Keys name samples: write a name = \"...\" into each [[data.source]]"
    with pytest.raises(DataError, match=re.escape(said)):
        open_data(read({**tables, "data": {"source": apart}}).data)
    named = [{**one, "name": name} for one, name in zip(apart, ("x", "y"))]
    assert open_data(read({**tables, "data": {"source": named}}).data).numbered().key(61) == "y/013"


# ---- subsets, and what is held out
def keys(found: Samples | None) -> set[str]:
    assert found is not None
    return {found.key(i) for i in range(len(found))}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """6000 samples in three shards; no images."""
    import io
    import tarfile

    paths = [tmp_path_factory.mktemp("many") / f"{n}.tar" for n in range(3)]
    for n, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for i in range(2000):
                tar.addfile(tarfile.TarInfo(f"{n}/{i:04}.png"), io.BytesIO())
    return [str(path) for path in paths]


def data(tables: dict[str, Any], shards: Sequence[str], held_out: float = 0, **source: Any) -> Any:
    found = open_data(read({**tables, "data": {"source": [{"shards": list(shards), **source}], "held_out": held_out}}).data)
    assert isinstance(found, Mixture)
    return found


def test_a_subset_lies_within_a_larger_one(toy: dict[str, Any], many: list[str]) -> None:
    found = [keys(data(toy, many, subset=subset)) for subset in (10, 0.01, 300, 0.1, 3000, 0.999, 1.0)]
    assert all(small < large for small, large in pairwise(found))
    assert [len(f) for f in found[::2]] == [10, 300, 3000, 6000]
    assert abs(len(found[1]) - 60) < 30 and abs(len(found[3]) - 600) < 90  # four deviations


def test_a_share_is_the_same_with_more_shards_and_in_any_order(toy: dict[str, Any], many: list[str]) -> None:
    few, all_, turned = (data(toy, shards, 0.1, subset=0.3) for shards in (many[:2], many, many[::-1]))
    assert keys(few) == {k for k in keys(all_) if k[0] != "2"} and keys(all_) == keys(turned)
    assert keys(few.held_out) == {k for k in keys(all_.held_out) if k[0] != "2"} and keys(all_.held_out) == keys(turned.held_out)
    named = data(toy, many, 0.1, subset=0.3, name="city")
    assert {f"city/{k}" for k in keys(all_.held_out)} == keys(named.held_out), "whatever the source's name"


def test_held_out_and_subset_are_independent(toy: dict[str, Any], many: list[str]) -> None:
    whole, half = data(toy, many, 0.2), data(toy, many, 0.2, subset=0.5)
    assert keys(whole.held_out) == keys(half.held_out), "a smaller subset is scored on the same samples"
    assert keys(whole).isdisjoint(keys(whole.held_out)) and len(keys(whole)) + len(keys(whole.held_out)) == 6000
    assert abs(len(whole.held_out) - 1200) < 130 and abs(len(half) / len(whole) - 0.5) < 0.03
    assert len(data(toy, many, 700).held_out) == 700 and len(data(toy, many, 700, subset=100)) == 100


def test_training_never_sees_what_is_held_out(mixed: dict[str, Any]) -> None:
    mixed["data"]["held_out"] = 0.2
    recipe = read(mixed, ["run.batch_size=14"])
    dims, found = opened(recipe)
    assert isinstance(found, Mixture)
    trained = {key for batch in training_batches(recipe, dims, found, rank=0, world=1, steps=12) for key in batch.keys}
    kept: set[str] = set()
    for rank in range(2):
        kept |= {key for batch in Factory(recipe, dims, found, rank, 2).plain("held-out", size=(4, 4), labels=("class",)) for key in batch.keys}
    assert kept == keys(found.held_out) and kept.isdisjoint(trained) and len(kept | trained) == 61 and 4 < len(kept) < 22
    assert keys(found.held_out) == keys(opened(read(mixed, ["run.seed=77"]))[1].held_out)
    assert {k for b in Factory(recipe, dims, found).plain(size=(4, 4)) for k in b.keys} == trained
    mixed["data"]["held_out"] = 0
    recipe = read(mixed)
    with pytest.raises(DataError, match=re.escape("held-out: [data] held_out keeps no samples from training. Write held_out = 0.05")):
        Factory(recipe, *opened(recipe)).plain("held-out", size=(4, 4))


def test_held_out_of_plain_shards(tables: dict[str, Any]) -> None:
    tables["data"]["held_out"] = 10
    recipe = read(tables)
    dims, found = opened(recipe)
    assert (len(found), dims.dataset_size, found.classes) == (51, 51, 5) and found.metadata["held_out"] == 10
    assert [prints(b) for b in batches(tables, steps=3)] == [prints(b) for b in batches(tables, "data.workers=1", steps=3)]


# ---- the rest
def test_another_sample_of_the_same_source_stands_in(mixed: dict[str, Any], write: Write, shards: list[str]) -> None:
    broken = write("broken.tar", {f"x{n}.{field}": b"broken" if field == "png" else b"1" for n in range(3) for field in ("png", "cls")})
    good = open_data(read(mixed).data).numbered().read(0).fields
    fine = write("fine.tar", {f"y{n}.{field}": good[field] for n in range(4) for field in ("png", "cls")})
    mixed["data"]["source"][1]["shards"] = [str(broken), str(fine)]
    recipe = read(mixed, ["data.bad_samples=6"])
    views = ViewDataset(recipe, *opened(recipe))
    for number in (7, 8, 9, 7 + 35):  # the 35 samples of all sources
        item = views[0, number]
        assert item.key.startswith("b/y") and item.bad[0].index == number % 35 and "'b/x" in str(item.bad[0])


def test_the_checksum_tells_what_is_read(mixed: dict[str, Any], shards: list[str]) -> None:
    def checksum(*overrides: str) -> str:
        return open_data(read(mixed, overrides).data).checksum

    changes = ("data.source.0.weight=29", "data.source.1.subset=0.5", "data.source.2.name=d", "data.held_out=0.1", f"data.source.0.shards={shards[2]}",
               "data.source=[{shards='" + shards[0] + "', name='a', weight=1}]")
    found = [checksum(), *(checksum(change) for change in changes)]
    assert len(set(found)) == len(found) and checksum("data.workers=3") == found[0]


@pytest.mark.parametrize("as_catalog", [False, True])
def test_the_version_tells_that_bytes_may_have_changed(tables: dict[str, Any], write: Any, monkeypatch: pytest.MonkeyPatch, as_catalog: bool) -> None:
    """Labels put right in place, as long as before: the checksum is of keys and sizes, and what is kept of them is read anew."""
    monkeypatch.setattr(catalog, "SHARDS", 1 if as_catalog else 256)
    label = [b"1", b"1"]
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")

    def stored() -> tuple[str, str, list[float]]:
        path = write("val.tar", {name: data for i in range(2) for name, data in ((f"{i}.png", picture.getvalue()), (f"{i}.cls", label[i]))})
        os.utime(path, ns=(0, int(label[1]) * 10**9))  # a clock may be too coarse for a test
        recipe = read(tables, [f"data.shards={path}"])
        shards = open_data(recipe.data)
        offers = Factory(recipe, assemble(recipe).dims(assemble(recipe).encoder(), len(shards), shards.classes), shards, 0, 1)
        offers.keeps = True

        def labels() -> dict[str, torch.Tensor]:
            return {"y": torch.cat([batch.labels["class"] for batch in offers.plain(size=(8, 8), labels=("class",))])}

        version = cast(Samples, shards).version
        return shards.checksum, version, offers.stored("labels", [], None, labels)["y"].tolist()

    first, again = stored(), stored()
    label[1] = b"2"
    second = stored()
    assert first == again and second[0] == first[0] and second[1] != first[1] and (first[2], second[2]) == ([1, 1], [1, 2])


def test_the_manifest_names_the_sources(mixed: dict[str, Any]) -> None:
    mixed["data"] |= {"held_out": 6}
    mixed["data"]["source"][1]["subset"] = 10
    about = open_data(read(mixed).data).metadata
    assert [(s["name"], s["samples"], s["share"]) for s in about["sources"]] == [("a", 7, 28 / 82), ("b", 33, 33 / 82), ("c", 21, 21 / 82)]
    assert about["held_out"] == 6 and about["sources"][1]["used"] == 10 and about["sources"][0]["used"] + about["sources"][2]["used"] >= 22


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.shards=x.tar"], "[data]: has shards and [[data.source]] too. Give them a [[data.source]] of their own, or set data.source=[]."),
        (["data.source=[]"], "[data].shards: is missing. Write the paths of some shards, images:DIR, or [[data.source]] tables."),
        (["data.source=[{shards='x.tar', weight=1}, {shards='y.tar', weight=2}, {shards='z.tar'}]"], "[[data.source]] weight: 2 of 3 sources have one. Write one for each, or none."),
        (["data.source.0.name=''"], "[[data.source]] name: 2 of 3 sources have one."),
        (["data.source.0.name=b"], "[[data.source]] name: 'b' stands twice."),
        (["data.source.0.name=a/b"], "name"),
        (["data.source.0.weight=0"], "[data].source[0]: weight must be > 0"),
        (["data.source.0.wieght=1"], "[data].source[0]: nothing takes 'wieght'. Did you mean 'weight'?"),
        (["data.source=[{name='a'}]"], "[data].source[0].shards: is missing"),
        (["data.source.0.subset=1"], "[data].source[0]: subset: 1 is one sample, and a share is written with a point. Write a share up to 1.0, or a number"),
        (["data.source.0.subset=1.5"], "[data].source[0]: subset: wants a share up to 1.0, or a number of samples, not 1.5"),
        (["data.source.0.subset=0"], "subset: wants a share up to 1.0, or a number of samples, not 0"),
        (["data.source.0.subset=many"], "[data].source[0].subset: wants a number, not 'many'"),
        (["data.held_out=1.0"], "[data]: held_out: wants a share below 1.0, or a number of samples, not 1.0"),
        (["data.held_out=nan"], "held_out: wants a share below 1.0, or a number of samples, not nan"),
        (["data.held_out=-5"], "held_out: wants a share below 1.0, or a number of samples, not -5"),
        (["evaluate=[{use='toy.x', val='held-out'}]"], "[[evaluate]] toy.x.val: held-out is what [data] held_out keeps, and it is 0. Write held_out = 0.05."),
    ],
)
def test_a_recipe_that_mixes_wrongly_is_refused(mixed: dict[str, Any], overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        read(mixed, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.source.0.subset=8"], "[[data.source]] a: subset: 8 is more than the 7 samples that there are. Write 7 or less."),
        (["data.source.0.subset=0.000001"], "[[data.source]] a: subset: 1e-06 of 7 samples is none. Write more."),
        (["data.held_out=62"], "[data] held_out: 62 is more than the 61 samples"),
        (["data.held_out=0.000001"], "[data] held_out: 1e-06 of 61 samples is none. Write more."),
        (["data.held_out=61"], "[data] held_out: 61 leaves nothing of a to train with. Write less."),
        (["data.source.0.weight=0.1"], "[[data.source]] a: its weight 0.1 is less than two samples of an epoch of 61. Write more."),
        (["run.batch_size=63"], "63 is more than the 61 samples"),
        (["data.source.0.shards=none.tar"], "none.tar: there is no such shard."),
    ],
)
def test_amounts_that_the_data_cannot_give_are_refused(mixed: dict[str, Any], overrides: list[str], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        batches(mixed, *overrides, steps=1)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_sources_survives_its_own_table(mixed: dict[str, Any]) -> None:
    recipe = read(mixed, ["data.source.0.weight=3", "data.source.1.subset=500", "data.held_out=0.05"])
    assert recipe.data.source[0].weight == 3 and read(recipe.table()) == recipe
    assert recipe.table()["data"]["source"][1] == {"shards": mixed["data"]["source"][1]["shards"], "name": "b", "weight": 33.0, "subset": 500}
    assert "shards" not in recipe.table()["data"] and "source" not in read({**mixed, "data": {"shards": "x.tar"}}).table()["data"]


def test_every_reading_of_an_epoch_has_a_place_of_its_own(mixed: dict[str, Any]) -> None:
    """Whoever reads it: a sample that an epoch has twice has two, and what was kept of either crop is told apart."""

    def readings(world: int, *overrides: str) -> dict[int, tuple[str, int]]:
        """Of the second epoch."""
        steps = 61 // mixed["run"]["batch_size"]
        each = [batch for rank in range(world) for batch in batches(mixed, *overrides, rank=rank, world=world, start=steps, steps=steps)]
        return {int(place): (key, int(seed)) for batch in each for place, key, seed in zip(batch.places, batch.keys, batch.seeds)}

    alone = readings(1)
    assert sorted(alone) == list(range(len(alone))) and len(alone) <= 61 and readings(2, "run.accumulation=2") == alone
    assert len({key for key, _ in alone.values()}) < len(alone) == len(set(alone.values()))
