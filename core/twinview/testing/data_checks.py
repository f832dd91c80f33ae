"""Checks of parts that answer in data workers: views, photometry, masks."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinview.assembly.answers import CHECKS
from twinview.data.dataset.open import open_shards
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import ViewDataset
from twinview.errors import ContractError
from twinview.model import make_model
from twinview.recipe import from_table
from twinview.testing.failure import Failure
from twinview.testing.images import small_shards
from twinview.testing.trial import Trial
from twinview.values import Batch, Geometry

SOURCES = ((37, 53), (480, 640), (1000, 30), (8, 8), (1, 1))  # height, width of images
DRAWS = 20  # of each


def same_for_workers(trial: Trial) -> Iterator[Failure]:
    """Two batches are the same, bit by bit, made in this process, by one worker and by two."""
    found = {}
    for workers in (0, 1, 2):
        table = trial.subject.table()
        recipe = from_table({**table, "data": {**table["data"], "workers": workers}})
        shards = open_shards(small_shards())
        dims = make_model(trial.subject.assemble(), len(shards), shards.classes).dims
        found[workers] = list(training_batches(recipe, dims, shards, rank=0, world=1, steps=2))
    for workers in (1, 2):
        for number, (one, other) in enumerate(zip(found[0], found[workers])):
            if difference := differing(one, other):
                wanted = "the same for any number of workers: draw from `rng` alone, and keep nothing between images"
                yield Failure(
                    trial.subject.name, hook_of(trial, difference),
                    f"other {difference} of batch {number} with {workers} workers than with none", wanted,
                )
                return


def alone(trial: Trial) -> Iterator[Failure]:
    """An image's views, draws and masks are the same alone as among others, and in another order."""
    recipe, shards = trial.subject.recipe(), open_shards(small_shards())
    assembly = trial.subject.assemble()
    dims = make_model(assembly, len(shards), shards.classes).dims
    data = ViewDataset(recipe, dims, shards, assembly)
    together, _ = data.collate([(0, index) for index in (3, 5, 0, 9)])
    for place, index in ((1, 5), (0, 3)):
        single, _ = data.collate([(0, index)])
        if difference := differing(pick(together, [place]), single):
            wanted = "each image by itself: what else is in a batch changes no bit of it"
            yield Failure(trial.subject.name, hook_of(trial, difference), f"other {difference} for an image alone than among four", wanted)
            return


def geometry(trial: Trial) -> Iterator[Failure]:
    """Boxes lie in images of any shape; number of views, sizes and pairs are the same; a draw follows from `rng`."""
    take = trial.subject.assemble().calls.sample_views
    fixed: Any = None
    for size in SOURCES:
        for seed in range(DRAWS):
            found: Geometry = take(size=size, rng=np.random.default_rng(seed))
            again: Geometry = take(size=size, rng=np.random.default_rng(seed))
            where = f"for an image of {size[0]}x{size[1]}"
            try:
                CHECKS["sample_views"](found, {})
            except ContractError as e:
                got, _, wanted = str(e).removeprefix("gives ").partition(". ")
                yield Failure(trial.subject.name, "sample_views", f"{got} {where}", wanted.rstrip(".").removeprefix("Give "))
                return
            if not torch.equal(found.boxes, again.boxes) or not torch.equal(found.flips, again.flips):
                yield Failure(trial.subject.name, "sample_views", f"other boxes or flips from the same generator {where}", "draws from `rng` alone")
                return
            kept = (found.sizes, found.pairs, found.draws, found.cut_from, found.sets)
            if fixed is not None and kept != fixed:
                yield Failure(trial.subject.name, "sample_views", f"other sizes, pairs, draws, cut_from or sets {where}", "the same for every image")
                return
            fixed = kept


def photometry(trial: Trial) -> Iterator[Failure]:
    """Pixels stay in 0..255 and in their type; the input is left as it is; equal draws give equal pixels; other channels where traits say so."""
    assembly, _ = trial.subject.make()
    kinds = [(3, torch.uint8)]
    if "any_channels" in trial.subject.traits.gives:
        kinds.append((5, torch.uint8))
    if "deep" in trial.subject.traits.gives:
        kinds.append((3, torch.float32))
    for channels, dtype in kinds:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (4, channels, 24, 32), generator=generator).to(dtype)
        drawn = [assembly.calls.draw_augment(view=0, size=(24, 32), rng=np.random.default_rng(seed)) or {} for seed in range(4)]
        params = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
        given = pixels.clone()
        found = assembly.calls.apply_augment(pixels=given, params=params)
        what = f"{channels} channels of {str(dtype).removeprefix('torch.')}"
        if found.shape != pixels.shape or found.dtype != dtype:
            got = f"{list(found.shape)} {str(found.dtype).removeprefix('torch.')} for {list(pixels.shape)} of {what}"
            yield Failure(trial.subject.name, "apply_augment", got, "pixels of the same shape and dtype, or other words in traits()")
            continue
        if not torch.equal(given, pixels):
            yield Failure(trial.subject.name, "apply_augment", "its input changed", "new pixels: `pixels` may be another view's too")
        if not torch.equal(found, assembly.calls.apply_augment(pixels=pixels.clone(), params=params)):
            yield Failure(trial.subject.name, "apply_augment", "other pixels for the same draws", "pixels that follow from `params` alone")
        if dtype == torch.float32 and (float(found.min()) < 0 or float(found.max()) > 255):
            yield Failure(trial.subject.name, "apply_augment", f"{float(found.min()):g} to {float(found.max()):g} for {what}", "0 to 255")


def masks(trial: Trial) -> Iterator[Failure]:
    """Every image hides as many cells as another, unless traits say `uneven_masks`; some cell is left to see; a mask follows from `rng`."""
    subject, still = trial.subject, trial.still
    dims, take = still.model.dims, still.assembly.calls
    counts: dict[int, set[int]] = {}
    for seed in range(DRAWS):
        views = take.sample_views(size=(64, 80), rng=np.random.default_rng(seed))
        first, again = (take.make_masks(geometry=views, grids=dims.grids, rng=np.random.default_rng(seed)) or () for _ in range(2))
        for view, (mask, other) in enumerate(zip(first, again, strict=True)):
            hidden = 0 if mask is None else int(mask.sum())
            counts.setdefault(view, set()).add(hidden)
            if (mask is None) != (other is None) or (mask is not None and other is not None and not torch.equal(mask, other)):
                yield Failure(subject.name, "make_masks", "another mask from the same generator", "draws from `rng` alone")
                return
            if mask is not None and hidden == mask.numel():
                yield Failure(subject.name, "make_masks", f"all {hidden} cells of view {view} hidden", "a cell that is left to see")
                return
    for view, found in counts.items():
        if len(found) > 1 and "uneven_masks" not in subject.traits.gives:
            wanted = 'as many in every image, or Traits(gives=frozenset({"uneven_masks"}))'
            yield Failure(subject.name, "make_masks", f"{min(found)} hidden cells of view {view} in one image and {max(found)} in another", wanted)


# ---- pieces
def differing(one: Batch, other: Batch) -> str:
    """What of two batches is not the same, bit by bit; "": nothing."""
    pairs: dict[str, tuple[Any, Any]] = {
        "keys": (one.keys, other.keys),
        "boxes": (one.geometry.boxes, other.geometry.boxes),
        "flips": (one.geometry.flips, other.geometry.flips),
        "masks": (one.hidden, other.hidden),
        "pixels": (one.images, other.images),
        "draws": (one.augment, other.augment),
    }
    return next((name for name, (a, b) in pairs.items() if not _equal(a, b)), "")


def hook_of(trial: Trial, difference: str) -> str:
    """The hook of the part that such a difference is most likely from."""
    hook = {"boxes": "sample_views", "flips": "sample_views", "masks": "make_masks", "draws": "draw_augment"}.get(difference, "apply_augment")
    return hook if trial.subject.answers(hook) else next(iter(sorted(trial.subject.hooks & {"sample_views", "make_masks", "apply_augment"})), hook)


def pick(batch: Batch, which: list[int]) -> Batch:
    """Some images of a batch, in this order."""
    rows = torch.tensor(which)

    def some(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        if isinstance(value, Mapping):
            return {key: some(one) for key, one in value.items()}
        return None if value is None else tuple(some(one) for one in value)

    g = batch.geometry
    chosen = g._replace(boxes=g.boxes[rows], flips=g.flips[rows], source=g.source[rows], notes=some(g.notes))
    return batch._replace(
        keys=tuple(batch.keys[i] for i in which), ids=batch.ids[rows], seeds=batch.seeds[rows], places=batch.places[rows],
        images=some(batch.images), geometry=chosen,
        hidden=some(batch.hidden), augment=some(batch.augment), labels=some(batch.labels),
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))
    return bool(a == b)
