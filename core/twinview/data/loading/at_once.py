"""A worker's batch at once: its draws together, its pixels image by image straight into it, its bookkeeping in arrays.

It is what `ViewDataset`'s items one by one come to, bit by bit.  A sample that does not decode is made as an item, with whatever takes its place.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinview.assembly import Assembly
from twinview.assembly.checks import asks_batch
from twinview.data import rng as draws
from twinview.data.dataset.base import Samples
from twinview.data.dataset.order import SampleIndex
from twinview.data.dataset.read import BadSample, read, read_class
from twinview.data.formats.opened import JpegMemory, Opened, opened
from twinview.data.loading.cutter import Cutter
from twinview.data.loading.cutting import check_fixed, on_pixels_batch, sources
from twinview.data.loading.item import Item
from twinview.data.loading.repeats import check_batched, stacked_draws
from twinview.data.loading.stacking import stacked_masks
from twinview.data.loading.view_labels import stacked_labels, view_labels
from twinview.data.rng import Rekeyed
from twinview.errors import ContractError
from twinview.recipe import Recipe
from twinview.values import Batch, Dims, Geometry

HELD = 1 << 25  # bytes of files that are read before they are decoded
Keys = NDArray[np.uint64]  # [n, 2], of generators


def fits(recipe: Recipe, dims: Dims) -> bool:
    """Whether batches are made at once: of 8-bit color images decoded in full, no view cut out of another."""
    data = recipe.data
    return data.channels == 3 and not data.white and data.decode == "full" and sources(dims) == tuple(range(len(dims.sizes)))


class _Row(NamedTuple):
    """A sample that opened, and its place in the batch."""

    place: int
    image: Opened


class BatchMaker:
    """Makes batches, and keeps what they share."""

    def __init__(self, recipe: Recipe, dims: Dims, assembly: Assembly, even: str) -> None:
        """`even`: as `collate` has it."""
        self.recipe, self.dims, self.assembly, self.even = recipe, dims, assembly, even
        self.calls, self.rng, self.memory, self.cut, self.checked = assembly.calls, Rekeyed(), JpegMemory(), Cutter(), False
        self.augment, self.masks = assembly.has("draw_augment"), assembly.has("make_masks")
        self.reuses = self.augment and recipe.data.augment_on == "worker"  # the memory of views that photometry makes others of
        self._room = tuple(torch.empty(0, 3, *size, dtype=torch.uint8) for size in dims.sizes)
        self.batched = {hook: asks_batch(assembly, hook) for hook in ("sample_views", "draw_augment")}

    def __call__(self, shards: Samples, places: Sequence[SampleIndex], item: Callable[[SampleIndex], Item]) -> tuple[Batch, tuple[BadSample, ...]]:
        """The batch of some places of one epoch, with its draws still to be applied, and the samples in it that had to be replaced.

        `item` makes one sample by itself.
        """
        first = None if self.checked else item(places[0])
        found = _Batch(self, shards, places, item)
        for rows in found.read():
            found.cut(rows)
        batch = found.finished()
        if first is not None:
            if not first.bad:
                check_batched(self.assembly, self.batched, first, batch)
            self.checked = True
        return batch, tuple(bad for _, item in sorted(found.odd.items()) for bad in item.bad)

    def room(self, n: int) -> tuple[Tensor, ...]:
        """For the views of n images, [n, 3, h, w] each; the same memory again where photometry makes others of them, since new pages cost time."""
        if len(self._room[0]) >= n:
            return tuple(images[:n] for images in self._room)
        made = tuple(torch.empty(n, 3, *size, dtype=torch.uint8) for size in self.dims.sizes)
        self._room = made if self.reuses else self._room
        return made


class _Batch:
    """One batch on its way: arrays whose rows are filled as its images come."""

    def __init__(self, maker: BatchMaker, shards: Samples, places: Sequence[SampleIndex], item: Callable[[SampleIndex], Item]) -> None:
        self.maker, self.shards, self.places, self.item, self.epoch = maker, shards, places, item, places[0][0]
        self.drawn = 0 if maker.recipe.data.frozen_draws else self.epoch
        n, views = len(places), len(maker.dims.sizes)
        self.times, self.ids = zip(*(divmod(number, len(shards)) for _, number in places))
        self.keys = [shards.key(i) for i in self.ids]
        self.view_keys = self.bits("views")
        self.odd: dict[int, Item] = {}  # by place: what was made by itself
        self.images = maker.room(n)
        self.arrays = [images.numpy() for images in self.images]
        self.boxes, self.flips = np.empty((n, views, 4), np.float32), np.empty((n, views), np.bool_)
        self.sizes, self.notes = np.empty((n, 2), np.int64), dict[str, Tensor]()
        self.labels: list[dict[str, Tensor]] = [{} for _ in places]

    # ---- image by image
    def read(self) -> Iterator[list[_Row]]:
        """The samples, as many at a time as HELD lets; what does not open is made by itself."""
        rows, held = list[_Row](), 0
        for place, i in enumerate(self.ids):
            try:
                image = read(self.shards, i, lambda data: opened(data, self.maker.memory))
            except BadSample:
                self.alone(place)
                continue
            rows.append(_Row(place, image))
            held += image.held
            if held > HELD:
                yield rows
                rows, held = [], 0
        yield rows

    def cut(self, rows: list[_Row]) -> None:
        """Draw where the views of some samples lie, and cut them into the batch."""
        if not rows:
            return
        at = [row.place for row in rows]
        sizes = np.array([row.image.size for row in rows])
        geometry = self.geometry(sizes, self.view_keys[at])
        boxes, flips = geometry.boxes.numpy(), geometry.flips.numpy()
        if not np.isfinite(boxes).all():
            raise ContractError(f"{self.maker.assembly.place_of('sample_views')}: gives boxes with values that are not finite.", placed=True)
        self.sizes[at], self.flips[at] = sizes, flips
        self.boxes[at], pixels = on_pixels_batch(boxes, sizes)
        for name, value in geometry.notes.items():
            self.notes.setdefault(name, torch.empty(len(self.keys), dtype=value.dtype))[at] = value
        for (place, image), own, mirrored in zip(rows, pixels.tolist(), flips.tolist()):
            try:
                self.maker.cut(image.pixels(), own, mirrored, [view[place] for view in self.arrays])
            except ValueError:  # which says why when it is made by itself
                self.alone(place)
                continue
            self.label(place)

    def alone(self, place: int) -> None:
        """Make a sample, or what takes its place, by itself."""
        item = self.item(self.places[place])
        self.odd[place], self.keys[place], geometry = item, item.key, item.geometry
        self.boxes[place], self.flips[place], self.sizes[place] = (one.numpy() for one in (geometry.boxes, geometry.flips, geometry.source))
        for name, value in geometry.notes.items():
            self.notes.setdefault(name, torch.empty(len(self.keys), dtype=value.dtype))[place] = value
        for images, own in zip(self.images, item.images):
            images[place] = own
        self.labels[place] = item.labels

    def label(self, place: int) -> None:
        """Read the labels of a sample that are asked for."""
        dims, i = self.maker.dims, self.ids[place]
        found = {"class": torch.tensor(read_class(self.shards, i))} if dims.classes else {}
        if dims.wants:
            height, width = self.sizes[place].tolist()
            found |= view_labels(self.shards, i, (height, width), self.of(place), dims.wants)
        self.labels[place] = found

    # ---- draws
    def bits(self, purpose: str) -> Keys:
        """[B, 2]: what the generators of the batch's own samples are keyed with, little-endian."""
        seed = self.maker.recipe.run.seed
        text = [draws.digest(seed, self.drawn, key, draws.again(purpose, times)) for key, times in zip(self.keys, self.times)]
        return np.frombuffer(b"".join(text), "<u8").reshape(-1, 2)

    def geometry(self, sizes: NDArray[np.int64], keys: Keys) -> Geometry:
        """Of images of these sizes, with them first in every tensor."""
        maker = self.maker
        if maker.batched["sample_views"]:
            found = maker.calls.sample_views_batch(sizes=sizes, keys=keys)
            if found is not None:
                check_fixed(found, maker.dims, sizes[0].tolist(), maker.recipe.views.use)
                return found
        each = list[Geometry]()
        for (height, width), key in zip(sizes.tolist(), keys):
            each.append(maker.calls.sample_views(size=(height, width), rng=maker.rng.keyed(key)))
            check_fixed(each[-1], maker.dims, (height, width), maker.recipe.views.use)
        notes = {name: torch.stack([one.notes[name] for one in each]) for name in each[0].notes}
        return each[0]._replace(boxes=torch.stack([one.boxes for one in each]), flips=torch.stack([one.flips for one in each]), notes=notes)

    def photometry(self, view: int) -> dict[str, Tensor]:
        """The draws of a view, [B, ...] each."""
        maker, keys, size, own = self.maker, self.bits(f"augment/{view}"), self.maker.dims.sizes[view], dict[int, dict[str, Tensor]]()
        for place, item in self.odd.items():
            own[place] = cast(Any, item.augment)[view]
        if maker.batched["draw_augment"] and len(own) < len(keys):
            found = maker.calls.draw_augment_batch(view=view, size=size, keys=keys)
            if found is not None:
                for place, drawn in own.items():
                    for name, value in drawn.items():
                        found[name][place] = value
                return found
        each = [
            own[place] if place in own else maker.calls.draw_augment(view=view, size=size, rng=maker.rng.keyed(key)) or {}
            for place, key in enumerate(keys)
        ]
        try:
            return stacked_draws(each)
        except ContractError as e:
            raise ContractError(f"{maker.assembly.place_of('draw_augment')}: {e}", placed=True) from None

    def hidden(self) -> tuple[Tensor | None, ...]:
        """The masks of each view."""
        maker, grids = self.maker, self.maker.dims.grids
        if not maker.masks:
            return (None,) * len(self.images)
        each = [
            self.odd[place].hidden if place in self.odd
            else maker.calls.make_masks(geometry=self.of(place), grids=grids, rng=maker.rng.keyed(key)) or (None,) * len(grids)
            for place, key in enumerate(self.bits("masks"))
        ]
        return tuple(stacked_masks([one[view] for one in each], maker.even, view) for view in range(len(self.images)))

    # ---- the whole
    def of(self, place: int) -> Geometry:
        """Of one image."""
        boxes, flips, source = (torch.from_numpy(array[place]) for array in (self.boxes, self.flips, self.sizes))
        return self.whole()._replace(boxes=boxes, flips=flips, source=source, notes={name: value[place] for name, value in self.notes.items()})

    def whole(self) -> Geometry:
        """Of the batch."""
        dims = self.maker.dims
        boxes, flips, source = (torch.from_numpy(array) for array in (self.boxes, self.flips, self.sizes))
        return Geometry(boxes, flips, source, dims.sizes, dims.pairs, self.notes, dims.draws, dims.cut_from, dims.sets)

    def finished(self) -> Batch:
        """The batch, once all its images are in it."""
        again = zip(self.times, self.keys, self.ids)
        seeds = [draws.key_hash(draws.again(key, times)) if times else self.shards.key_hash(i) for times, key, i in again]
        of = self.maker.dims.draws or tuple(range(len(self.images)))
        drawn = {view: self.photometry(view) for view in dict.fromkeys(of)} if self.maker.augment else {}
        hidden, ids = self.hidden(), list(self.ids)
        for place, item in self.odd.items():
            ids[place], seeds[place] = item.id, item.seed
        return Batch(
            keys=tuple(self.keys),
            ids=torch.tensor(ids),
            seeds=torch.tensor(seeds),
            epoch=self.epoch,
            images=self.images,
            geometry=self.whole(),
            hidden=hidden,
            augment=tuple(drawn[view] for view in of) if self.maker.augment else None,
            labels=stacked_labels(self.labels),
            places=torch.tensor(ids),  # until `training_batches` knows them
        )
