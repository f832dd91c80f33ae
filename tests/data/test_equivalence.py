"""An epoch of BYOL's views and photometry from JPEGs is the same to the byte for any ranks x workers, and from any step on after a restart."""
from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twinview.assembly import assemble
from twinview.data.dataset.open import open_shards
from twinview.data.dataset.shards import Shards
from twinview.data.loading.loader import training_batches
from twinview.recipe import read
from twinview.values import Batch, Dims

Write = Callable[[str, Mapping[str, bytes]], Path]
GLOBAL, SAMPLES = 14, 61  # divisible by 1, 2 and 7 ranks; four steps an epoch, and five samples left over


@pytest.fixture
def jpegs(write: Write) -> list[str]:
    """61 JPEGs of several shapes in three shards."""
    paths = []
    for name, numbers in (("a", range(0, 7)), ("b", range(7, 40)), ("c", range(40, SAMPLES))):
        files = {}
        for n in numbers:
            file, rng = io.BytesIO(), np.random.default_rng(n)
            small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
            small.resize((40 + n % 5, 30 + n % 3), Image.Resampling.BICUBIC).save(file, "JPEG")
            files[f"street/{n:03}.jpg"] = file.getvalue()
        paths.append(str(write(f"{name}.tar", files)))
    return paths


class Epochs:
    """What a number of ranks, with a number of workers each, read from a step on."""

    def __init__(self, tables: dict[str, Any], shards: list[str], **data: Any) -> None:
        self.table = {k: v for k, v in tables.items() if k != "masks"} | {
            "views": {"use": "byol.crops", "size": 24},
            "augment": {"use": "byol.photometry", "solarize": [0.5, 0.5]},
            "data": {"shards": shards, **data},
            "run": {**tables["run"], "batch_size": GLOBAL},
        }
        self.opened: Shards = open_shards(shards)
        assembly = assemble(read(self.table))
        self.dims: Dims = assembly.dims(assembly.encoder(), len(self.opened))

    def __call__(self, ranks: int, workers: int, start: int, steps: int) -> list[str]:
        """A line for each sample of each global batch: key, epoch, and a hash of every byte that a step is given of it."""
        recipe = read(self.table, (f"data.workers={workers}",))
        shares = [training_batches(recipe, self.dims, self.opened, rank=rank, world=ranks, start=start, steps=steps) for rank in range(ranks)]
        return [line for parts in zip(*shares, strict=True) for batch in parts for line in lines(batch)]


def lines(batch: Batch) -> list[str]:
    assert all(images.is_contiguous() and images.dtype == torch.uint8 for images in batch.images)
    found = []
    for b, key in enumerate(batch.keys):
        tensors = [*(images[b] for images in batch.images), batch.geometry.boxes[b], batch.geometry.flips[b], batch.geometry.source[b], batch.seeds[b]]
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
        found.append(f"{key} {batch.epoch} {digest}")
    return found


@pytest.mark.parametrize("decode", ["full", "scaled"])
def test_ranks_workers_and_restarts_change_no_byte(tables: dict[str, Any], jpegs: list[str], decode: str) -> None:
    epochs = Epochs(tables, jpegs, decode=decode)
    whole = epochs(1, 0, 0, 6)  # an epoch and a half
    assert len(set(whole)) == len(whole) == 6 * GLOBAL
    assert len({line.split()[0] for line in whole[: 4 * GLOBAL]}) == 4 * GLOBAL, "every sample once an epoch"
    for ranks, workers in ((1, 3), (2, 2), (7, 1)):
        assert epochs(ranks, workers, 0, 6) == whole
    killed = epochs(2, 2, 0, 3)  # in the middle of the first epoch; then with other ranks and workers, over its end
    assert killed + epochs(7, 0, 3, 2) + epochs(1, 1, 5, 1) == whole
