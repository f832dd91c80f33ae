"""Any number of ranks and workers, any restart: the same global batches.  A worker that fails says why, and never hangs."""
from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.loading.loader import load, training_batches
from twinview.errors import DataError, HookError, PluginError
from twinview.recipe import read
from twinview.values import Batch

Write = Callable[[str, Mapping[str, bytes]], Path]


def batches(tables: dict[str, Any], *overrides: str, rank: int = 0, world: int = 1, start: int = 0, steps: int | None = None) -> Any:
    recipe = read(tables, overrides)
    assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
    dims = assembly.dims(assembly.encoder(), len(shards), shards.classes)
    return training_batches(recipe, dims, shards, rank=rank, world=world, start=start, steps=steps)


def prints(batch: Batch) -> list[Any]:
    """Each sample of a batch, as something that can be compared."""
    hidden = batch.hidden[0]
    assert hidden is not None
    return [
        (key, batch.epoch, batch.geometry.boxes[b].tolist(), [i[b].sum().item() for i in batch.images], hidden[b].tolist())
        for b, key in enumerate(batch.keys)
    ]


def joined(tables: dict[str, Any], world: int, workers: int, start: int, steps: int) -> list[list[Any]]:
    ranks = [batches(tables, f"data.workers={workers}", rank=rank, world=world, start=start, steps=steps) for rank in range(world)]
    return [[sample for batch in parts for sample in prints(batch)] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_global_batches_are_identical(tables: dict[str, Any], workers: int) -> None:
    """28 of 61 samples: two steps an epoch, so five steps see three epochs; then a resume in the middle of the second."""
    expected = joined(tables, 1, 0, 0, 5)
    assert [len(batch) for batch in expected] == [28] * 5 and len({str(sample) for batch in expected for sample in batch}) == 140
    for world in {0: (1, 2, 4, 7), 1: (2, 7), 3: (1, 4)}[workers]:
        assert joined(tables, world, workers, 0, 5) == expected
    assert joined(tables, 2, workers, 3, 2) == expected[3:]


def test_accumulation_cuts_the_same_batches(tables: dict[str, Any]) -> None:
    whole = [prints(b) for b in batches(tables, steps=3)]
    cut = [prints(b) for b in batches(tables, "run.accumulation=2", "data.workers=1", steps=3)]
    assert [a + b for a, b in zip(cut[::2], cut[1::2], strict=True)] == whole
    resumed = [prints(b) for b in batches(tables, "run.accumulation=2", start=2, steps=1)]
    assert resumed == cut[4:]


def test_a_batch_size_that_does_not_fit_is_refused_at_once(tables: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="28 is no multiple of 3 ranks x 1"):
        batches(tables, world=3)
    with pytest.raises(DataError, match="62 is more than the 61 samples"):
        batches(tables, "run.batch_size=62")


def test_torchs_own_generator_is_left_alone(tables: dict[str, Any]) -> None:
    for workers in (0, 1):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        found = [prints(b) for b in batches(tables, f"data.workers={workers}", steps=2)]
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert [prints(b) for b in batches(tables, f"data.workers={workers}", steps=2)] == found


def test_workers_live_on_over_epochs_and_end_with_the_generator(tables: dict[str, Any]) -> None:
    endless = batches(tables, "data.workers=2")
    next(endless)
    workers = {child.pid for child in multiprocessing.active_children()}
    epochs = []
    for batch in islice(endless, 6):
        epochs.append(batch.epoch)
        assert {child.pid for child in multiprocessing.active_children()} == workers and len(workers) == 2
    assert epochs == [0, 1, 1, 2, 2, 3]
    endless.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_input_comes_out_as_it_was_raised(tables: dict[str, Any], workers: int) -> None:
    fault = {**tables, "views": {"use": "random.views", "fault": "here" if workers == 0 else "said"}}
    with pytest.raises(PluginError) as caught:
        # dims asks the sampler once, in this process, before any worker is there
        recipe = read(tables, (f"data.workers={workers}",))
        assembly, shards = assemble(recipe), open_shards(recipe.data.shards)
        dims = assembly.dims(assembly.encoder(), len(shards), shards.classes)
        next(training_batches(read(fault, (f"data.workers={workers}",)), dims, shards, rank=0, world=1))
    assert str(caught.value) == "[views] random.views: it is not its day."
    assert not multiprocessing.active_children()


def test_a_bug_of_a_part_keeps_its_traceback(tables: dict[str, Any]) -> None:
    with pytest.raises(HookError, match=r"sample_views\(\) raises ZeroDivisionError: a bug of the part") as caught:
        next(batches({**tables, "views": {"use": "random.views", "fault": "bug"}}, "data.workers=1"))
    assert "in sample_views" in caught.value.details
    assert caught.tb and not multiprocessing.active_children(), "a traceback that is kept keeps no worker"


def test_a_worker_that_is_killed_ends_the_run_in_one_line(tables: dict[str, Any]) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=r"\[data\] workers: one ended unexpectedly \(DataLoader worker .*\)\. Where memory is short, write fewer\."):
        next(batches({**tables, "views": {"use": "random.views", "fault": "killed"}}, "data.workers=1"))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_replaced_counted_and_too_many_of_them_refused(
    tables: dict[str, Any], write: Write, shards: list[str], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    good = open_shards(shards)
    files = {f"{i:03}.png": good.read(i).fields["png"] if i not in (9, 30) else b"broken" for i in range(61)}
    tables = {**tables, "data": {"shards": str(write("broken.tar", files)), "workers": workers, "bad_samples": 2}}
    ranks = [list(batches(tables, rank=rank, world=2, steps=8)) for rank in range(2)]
    assert all(len(batch.keys) == 14 for found in ranks for batch in found), "no rank misses a step, no step a sample"
    assert not {"009", "030"} & {key for found in ranks for batch in found for key in batch.keys}
    assert 2 <= len([r for r in caplog.records if "takes its place" in r.getMessage()]) <= 4, "each rank names each once"
    whole = [prints(b) for b in batches(tables, steps=8)]
    assert [prints(a) + prints(b) for a, b in zip(*ranks)] == whole
    with pytest.raises(DataError, match=re.escape("broken.tar, sample '0")):
        list(batches(tables, "data.bad_samples=1", steps=8))
    assert not multiprocessing.active_children()


def test_a_shard_that_is_damaged_on_the_way_ends_the_run(tables: dict[str, Any], shards: list[str]) -> None:
    endless = batches(tables, "data.workers=1", "data.bad_samples=5")
    next(endless)
    os.truncate(shards[1], 2000)
    with pytest.raises(DataError, match=r"b\.tar: has changed since it was opened"):
        list(islice(endless, 20))


def test_batches_come_in_order_however_long_each_takes() -> None:
    def slow(places: Any) -> int:
        time.sleep(0.05 if places[0] % 3 == 0 else 0)
        return int(places[0])

    assert list(load(slow, [[n] for n in range(12)], 3)) == list(range(12))
