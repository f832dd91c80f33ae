"""Training samples: an image is decoded once, its views are cut from it, and every random draw depends on the sample itself."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from twinview.assembly import Assembly, assemble
from twinview.data import rng as draws
from twinview.data.dataset.base import Samples
from twinview.data.dataset.order import SampleIndex
from twinview.data.dataset.read import BadSample, read, read_class, read_image, tried
from twinview.data.formats import jpeg_draft
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.at_once import BatchMaker, fits
from twinview.data.loading.cutting import check_fixed, cut, cut_views, on_pixels, on_views, sources
from twinview.data.loading.item import Cut, Item
from twinview.data.loading.repeats import check_repeats
from twinview.data.loading.stacking import collate
from twinview.data.loading.view_labels import view_labels
from twinview.data.rng import Rekeyed
from twinview.errors import ContractError, DataError
from twinview.recipe import Recipe
from twinview.values import Batch, Dims, Size

log = logging.getLogger(__name__)


class WorkerHooks:
    """What a worker process asks for every sample."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly, self.calls, self.rng = assembly, assembly.calls, Rekeyed()
        self.repeats = False  # that a sample drawn twice is the same has been seen
        self.augment, self.masks = assembly.has("draw_augment"), assembly.has("make_masks")
        self.maker: BatchMaker | None = None


class _Image(NamedTuple):
    size: Size
    scalable: bool
    pixels: Callable[[int], Tensor]  # of a unit (`reduced.unit`), 1 unless it is scalable


class ViewDataset:
    """Items by (epoch, number): a map-style data set.

    A worker process that is started anew makes its own parts from the recipe; one that is forked has those of `assembly`, where they were given.
    """

    def __init__(self, recipe: Recipe, dims: Dims, shards: Samples, assembly: Assembly | None = None) -> None:
        """`assembly`: the recipe's parts, where they are made already."""
        self.recipe, self.dims, self.shards = recipe, dims, shards
        self._parts = WorkerHooks(assembly) if assembly else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: SampleIndex) -> Item:
        """The views of a sample, or of a replacement where it does not decode, drawn from (seed, epoch, key) alone.  Raises DataError, PluginError.

        A sample that an epoch has again is drawn anew: how often it had it before is part of every draw's name, and so is the key of the
        sample that it stands in for.
        """
        epoch, (again, index) = place[0], divmod(place[1], len(self))
        bad: list[BadSample] = []
        for candidate in self._candidates(epoch, again, index):
            try:
                stands_for = self.shards.key(index) if bad else ""
                return self._checked(epoch, again, candidate, stands_for)._replace(bad=tuple(bad))
            except BadSample as e:
                bad.append(e)
        raise too_many(bad[-1], self.recipe.data.bad_samples)

    def collate(self, places: Sequence[SampleIndex]) -> tuple[Batch, tuple[BadSample, ...]]:
        """The batch of some places of one epoch, and the samples in it that had to be replaced."""
        if fits(self.recipe, self.dims):
            batch, bad = self._batches()(self.shards, places, self.__getitem__)
            cuts: list[dict[int, Cut]] = []
        else:
            batch, bad, cuts = self._stacked(places)
        if batch.augment is not None and self.recipe.data.augment_on == "worker":
            apply, whole = self._made().calls.apply_augment, set(sources(batch.geometry))
            drawn = enumerate(zip(batch.images, batch.augment))
            images = tuple(_apart(apply(pixels=raw, params=params), raw) if v in whole else raw for v, (raw, params) in drawn)
            batch = batch._replace(images=images, augment=None)
        images = cut_views(batch.images, batch.geometry, cuts)
        return batch._replace(images=tuple(i.contiguous() for i in images)), bad

    def _stacked(self, places: Sequence[SampleIndex]) -> tuple[Batch, tuple[BadSample, ...], list[dict[int, Cut]]]:
        """The batch of items one by one, its draws still to be applied; what was replaced; views that are cut out of others once these are done."""
        items = [self[place] for place in places]
        try:
            batch = collate(items, self._uneven())
        except ContractError as e:  # of draws
            raise ContractError(f"{self._made().assembly.place_of('draw_augment')}: {e}", placed=True) from None
        return batch, tuple(bad for item in items for bad in item.bad), [item.cuts for item in items]

    def _batches(self) -> BatchMaker:
        made = self._made()
        made.maker = made.maker or BatchMaker(self.recipe, self.dims, made.assembly, self._uneven())
        return made.maker

    def _made(self) -> WorkerHooks:
        self._parts = self._parts or WorkerHooks(assemble(self.recipe))
        return self._parts

    def _uneven(self) -> str:
        """Why the masks of a batch must all hide as many cells; "": they need not."""
        if self.recipe.masks is None:
            return ""
        assembly = self._made().assembly
        if "uneven_masks" in assembly.traits[self.recipe.masks.label].gives:
            return ""
        return f"[masks] {self.recipe.masks.use}"

    def _candidates(self, epoch: int, again: int, index: int) -> Iterator[int]:
        """The sample, then as many others of its source as may be bad; a run of neighbors from a random place, so none is tried twice."""
        yield index
        if self.recipe.data.bad_samples:
            replacements = self.shards.replacements(index)
            first = draws.rng(self.recipe.run.seed, epoch, self.shards.key(index), draws.again("replacement", again)).integers(len(replacements))
            yield from (replacements[(int(first) + n) % len(replacements)] for n in range(self.recipe.data.bad_samples))

    def _checked(self, epoch: int, again: int, index: int, stands_for: str) -> Item:
        """An item; the first of a process is made twice."""
        item, hooks = self._item(epoch, again, index, stands_for), self._made()
        if not hooks.repeats:
            check_repeats(hooks.assembly, item, self._item(epoch, again, index, stands_for))
            hooks.repeats = True
        return item

    def _image(self, index: int) -> _Image:
        shards, form = self.shards, PixelFormat.of(self.recipe.data)
        if self.recipe.data.decode == "scaled":
            data, size = read(shards, index, lambda data: (data, jpeg_draft.full_size(data)))
            if size is not None:
                return _Image(size, True, lambda unit: tried(shards, index, lambda: jpeg_draft.image(data, unit)))
        pixels = read_image(shards, index, form)
        return _Image((pixels.shape[1], pixels.shape[2]), False, lambda _: pixels)

    def _item(self, epoch: int, again: int, index: int, stands_for: str) -> Item:
        parts, key = self._made(), self.shards.key(index)
        drawn = 0 if self.recipe.data.frozen_draws else epoch

        def rng(purpose: str) -> np.random.Generator:
            return parts.rng(self.recipe.run.seed, drawn, key, draws.again(purpose, again, stands_for))

        image = self._image(index)
        height, width = image.size
        geometry = parts.calls.sample_views(size=(height, width), rng=rng("views"))
        check_fixed(geometry, self.dims, image.size, self.recipe.views.use)
        unit = jpeg_draft.unit(geometry, image.size) if image.scalable else 1
        meant = geometry
        geometry, boxes = on_pixels(geometry, height, width, unit)
        pixels = image.pixels(unit)
        geometry, cuts = on_views(geometry, meant)
        flips = geometry.flips.tolist()
        images = tuple(
            pixels[:, :0, :0] if v in cuts else cut(pixels, box, size, flip) for v, (box, size, flip) in enumerate(zip(boxes, geometry.sizes, flips))
        )

        augment = masks = None
        if parts.augment:
            of = geometry.draws or tuple(range(len(images)))
            drawn_by = {v: parts.calls.draw_augment(view=v, size=geometry.sizes[v], rng=rng(f"augment/{v}")) or {} for v in dict.fromkeys(of)}
            augment = tuple(drawn_by[v] for v in of)
        if parts.masks:
            masks = parts.calls.make_masks(geometry=geometry, grids=self.dims.grids, rng=rng("masks"))
        return Item(
            key=key,
            id=index,
            seed=draws.key_hash(draws.again(key, again, stands_for)) if again or stands_for else self.shards.key_hash(index),
            epoch=epoch,
            images=images,
            geometry=geometry,
            hidden=masks or (None,) * len(images),
            augment=augment,
            cuts=cuts,
            labels=({"class": torch.tensor(read_class(self.shards, index))} if self.dims.classes else {})
            | (view_labels(self.shards, index, (height, width), geometry, self.dims.wants) if self.dims.wants else {}),
        )


def _apart(made: Tensor, given: Tensor) -> Tensor:
    """What photometry made, in memory of its own: the next batch is cut where it was `given` this one."""
    return made.clone() if made.untyped_storage().data_ptr() == given.untyped_storage().data_ptr() else made


class BadSamples:
    """Counts the samples that a rank could not decode, names each once, and stops the run where they are too many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: dict[int, str] = {}  # index of a sample -> its place, and why

    def add(self, bad: Sequence[BadSample]) -> None:
        """Raises DataError where there are more than `limit` different ones."""
        for one in bad:
            if one.index not in self.seen:
                self.seen[one.index] = str(one)
                if len(self.seen) > self.limit:
                    raise too_many(one, self.limit)
                log.warning("%s. Another sample takes its place (%d of %d).", one, len(self.seen), self.limit)


def too_many(last: BadSample, limit: int) -> DataError:
    """More samples are bad than the recipe lets pass."""
    passed = f"[data] bad_samples lets {limit} pass" + (", and this is one more" if limit else "; raise it to have such samples replaced")
    return DataError(f"{last}. {passed}.")
