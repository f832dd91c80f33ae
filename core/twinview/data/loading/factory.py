"""What `before_epoch` and `evaluate` read images with: whole images without any draw, or an epoch's own batches."""
from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from twinview.data.dataset.base import DataSource, Samples
from twinview.data.dataset.open import open_shards, shard_paths
from twinview.data.dataset.order import steps_per_epoch
from twinview.data.dataset.overlap import shared_samples
from twinview.data.dataset.read import BadSample, bad_sample, read_class, read_image, read_map
from twinview.data.dataset.statistics import class_names
from twinview.data.formats import decode
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.feature_cache import stored
from twinview.data.loading.loader import load, training_batches
from twinview.data.loading.view_labels import stacked_labels, view_labels
from twinview.data.loading.views import BadSamples
from twinview.data.remote.shard import Access, is_remote
from twinview.errors import DataError, PluginError, closest
from twinview.progress import progress
from twinview.recipe import Recipe
from twinview.recipe.tables import HELD_OUT
from twinview.values import Alignment, Batch, Dims, Features, Geometry, PlainBatch, Size

if TYPE_CHECKING:
    from twinview.branch import Branch

LABELS = ("class", "map", "objects")
NO_HELD_OUT = f"{HELD_OUT}: [data] held_out keeps no samples from training. Write held_out = 0.05, or the paths of shards."


class Factory:
    """A rank's share of the run's data; implements `values.DataFactory`."""

    def __init__(
        self, recipe: Recipe, dims: Dims, shards: DataSource, rank: int = 0, world: int = 1,
        features: Callable[..., Features] | None = None, alignment: Callable[..., Alignment] | None = None,
    ) -> None:
        """`features`, `alignment`: of the run's model (`Siamese.features`); None where there is none."""
        self._features, self._alignment = features, alignment
        self.recipe, self.dims, self.shards, self.rank, self.world = recipe, dims, shards, rank, world
        self._opened: dict[tuple[str, ...], Samples] = {}
        self.doing = "read images"  # what they are read for, as progress says it
        self.keeps = False  # what `stored` makes of modules whose weights may move is kept too: no training goes on
        self.checksums: dict[str, str] = {}  # of all that `plain` has read, by how it was named

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.recipe.data.channels

    def views(self, epoch: int) -> Generator[Batch]:
        """The training batches of this rank just as `epoch` draws them, to its end."""
        length = steps_per_epoch(len(self.shards), self.recipe.run.batch_size)
        return training_batches(self.recipe, self.dims, self.shards, rank=self.rank, world=self.world, start=epoch * length, steps=length)

    def features(
        self, branch: Branch, batch: Batch | PlainBatch, view: int = 0, *, train: bool = False, move_statistics: bool = False
    ) -> Features:
        """See `values.DataFactory.features`."""
        if self._features is None:
            raise PluginError("data.features: there is no model here.")
        return self._features(branch, batch, view, train=train, move_statistics=move_statistics)

    def alignment(self, batch: Batch, online: int, target: int, name: str = "") -> Alignment:
        """See `values.DataFactory.alignment`."""
        if self._alignment is None:
            raise PluginError("data.alignment: there is no model here.")
        return self._alignment(batch, online, target, name)

    def require(self, shards: str | Sequence[str]) -> None:
        """Raises DataError where paths of `shards` are not there, or where [data] keeps none of what they name."""
        require(shards, self.recipe)

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """See `values.DataFactory.class_names`."""
        with naming(shards):
            return class_names(self._open(shards))

    def shared(self, one: str | Sequence[str] | None, other: str | Sequence[str] | None) -> int:
        """See `values.DataFactory.shared`."""
        return shared_samples(self._open(one), self._open(other))

    def plain(
        self, shards: str | Sequence[str] | None = None, *, size: Size, labels: Sequence[str] = (), batch_size: int = 64,
        crop: bool | float = False, interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> Generator[PlainBatch]:
        """Whole images of `shards`, every `world`-th from `rank` on, in order, with the labels `class`, `map`, `objects`.

        By default the samples that the run trains with; "held-out": those that it keeps from training.  Images [B, 3, H, W] float are resized
        with antialiasing and normalized; label maps take the nearest label.  `crop` cuts out the largest central box of the shape of
        `size` first, or that share of it.  Images that do not decode are left out, up to [data] bad_samples.  Raises DataError, also where a label
        is missing.
        """
        for label in labels:
            if label not in LABELS:
                raise DataError(f"plain(labels=...): there are no labels {label!r}.{closest(label, LABELS)}")
        source = self._open(shards)
        share = range(self.rank, len(source), self.world)
        places = (share[at : at + batch_size] for at in range(0, len(share), batch_size))

        def batches() -> Generator[PlainBatch]:
            bad = BadSamples(self.recipe.data.bad_samples)
            plain = PlainImages(source, PixelFormat.of(self.recipe.data), size, tuple(labels), float(crop), interpolation)
            loaded = load(plain, places, self.recipe.data.workers)
            try:
                with naming(shards):
                    for batch, failed in progress(loaded, -(-len(share) // batch_size), self.doing, "batches", leave=False):
                        bad.add(failed)
                        if batch.keys:
                            yield batch._replace(images=self._normalized(batch.images))
            finally:
                loaded.close()

        return batches()

    def stored(
        self, what: str, modules: Sequence[nn.Module], shards: str | Sequence[str] | None, make: Callable[[], dict[str, Tensor]], *,
        lasting: bool = False, **how: object,
    ) -> dict[str, Tensor]:
        """See `values.DataFactory.stored`."""
        if not (lasting or self.keeps):
            return make()
        data, encoder = self.recipe.data, self.recipe.encoder
        options = {key: value for key, value in encoder.options.items() if not key.startswith("weights")}
        colors = [data.channels, data.white, data.mean, data.std]
        network = [encoder.use, options, self.recipe.run.precision] if modules else []
        return stored([what, how, network, colors, self._open(shards).version], modules, make)

    def _open(self, shards: str | Sequence[str] | None) -> Samples:
        with naming(shards):
            found = self._samples(shards)
        self.checksums[", ".join([shards] if isinstance(shards, str) else shards or ["[data]"])] = str(found.checksum)
        return found

    def _samples(self, shards: str | Sequence[str] | None) -> Samples:
        if shards is None:
            return self.shards.numbered()
        if shards == HELD_OUT:
            if self.shards.held_out is None:
                raise DataError(NO_HELD_OUT)
            return self.shards.held_out
        names = (shards,) if isinstance(shards, str) else tuple(shards)
        if names not in self._opened:
            self._opened[names] = open_shards(names, Access.of(self.recipe.data))
        return self._opened[names]

    def _normalized(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) * 255 for numbers in self.recipe.data.colors())
        return (images.float() - mean) / std


@contextmanager
def naming(shards: str | Sequence[str] | None) -> Iterator[None]:
    """Faults of the data know of which set they are, so that whoever named it can be told which of their options to change."""
    try:
        yield
    except DataError as e:
        e.shards = shards if isinstance(shards, str) else list(shards or "") or ""
        raise


def require(shards: str | Sequence[str], recipe: Recipe) -> None:
    """Raises DataError where paths of `shards` are not there; what lies elsewhere is not asked for."""
    for one in (shards,) if isinstance(shards, str) else shards:
        with naming(shards):
            if one == HELD_OUT:
                if not recipe.data.held_out:
                    raise DataError(NO_HELD_OUT)
            elif not one.startswith("scenes:") and not is_remote(one):
                list(shard_paths(one))


class Paths:
    """What `check` is given for data before any is opened: `require` alone."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def require(self, shards: str | Sequence[str]) -> None:
        """See `values.DataFactory.require`."""
        require(shards, self._recipe)

    def __getattr__(self, name: str) -> Any:
        raise PluginError(f"check(dims, data): data.{name} is not there yet: before a run begins there is data.require(shards) alone.")


def central(pixels: Tensor, size: Size, share: float = 1.0) -> Tensor:
    """[..., H, W] -> the largest central box of the shape (height : width) of `size`, its sides times `share`."""
    height, width = pixels.shape[-2:]
    h, w = (round(share * n) for n in (min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))))
    y, x = (height - h) // 2, (width - w) // 2
    return pixels[..., y : y + max(h, 1), x : x + max(w, 1)]


class PlainImages:
    """Makes a batch of whole images; they are normalized out of the worker."""

    def __init__(self, shards: Samples, form: PixelFormat, size: Size, labels: tuple[str, ...], crop: float, interpolation: str = "bilinear") -> None:
        self.shards, self.form, self.size, self.labels, self.crop, self.interpolation = shards, form, size, labels, crop, interpolation

    def __call__(self, places: Sequence[int]) -> tuple[PlainBatch, tuple[BadSample, ...]]:
        """The images of some places, those left out that do not decode, and these."""
        good, images, bad, objects = list[int](), list[Tensor](), list[BadSample](), list[dict[str, Tensor]]()
        labels: dict[str, list[Tensor]] = {name: [] for name in self.labels}
        for i in places:
            try:
                pixels = read_image(self.shards, i, self.form)
            except BadSample as e:
                bad.append(e)
                continue
            good.append(i)
            images.append(decode.resize(self._cut(pixels), self.size, self.interpolation))
            if "class" in labels:
                labels["class"].append(torch.tensor(read_class(self.shards, i)))
            if "objects" in labels:
                objects.append(self._objects(i, pixels))
            if "map" in labels:
                labels["map"].append(decode.resize_map(self._cut(self._map(i, pixels)), self.size))
        keys = tuple(self.shards.key(i) for i in good)
        stacked = {name: torch.stack(found) for name, found in labels.items() if found} | (stacked_labels(objects) if objects else {})
        pixels = torch.stack(images) if images else torch.empty(0, self.form.channels, *self.size, dtype=torch.uint8)
        return PlainBatch(keys, torch.tensor(good), pixels, stacked), tuple(bad)

    def _cut(self, pixels: Tensor) -> Tensor:
        return central(pixels, self.size, self.crop) if self.crop else pixels

    def _objects(self, i: int, pixels: Tensor) -> dict[str, Tensor]:
        """Annotations as the whole image, resized, shows them."""
        if self.crop:
            raise DataError('plain(labels=("objects",)): is of whole images. Leave crop out.')
        height, width = pixels.shape[-2:]
        whole = Geometry(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([False]), torch.tensor([height, width]), (self.size,), ())
        found = view_labels(self.shards, i, (height, width), whole, ("objects",))
        return {name.replace("objects/0/", "objects/"): value for name, value in found.items()}

    def _map(self, i: int, pixels: Tensor) -> Tensor:
        found = read_map(self.shards, i)
        if found.shape != pixels.shape[-2:]:
            sizes = f"its label map is {tuple(found.shape)} pixels (height, width), its image {tuple(pixels.shape[-2:])}"
            raise DataError(f"{bad_sample(self.shards, i, sizes)}.")
        return found
