"""What a planned model is given in place of data: images of noise, and what parts keep of them before an epoch."""
from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch.nn import functional as F

from twinview.assembly import Assembly
from twinview.branch import Branches, SampleStore
from twinview.data.dataset.open import open_shards
from twinview.data.loading.views import ViewDataset
from twinview.errors import CheckpointError
from twinview.model import Siamese
from twinview.ops.seeding import generator
from twinview.values import Batch, DataFactory, Dims, PlainBatch, Progress, Size

SIDE = 256  # pixels of an image of noise


def noise(assembly: Assembly, dims: Dims, images: int) -> Batch:
    """A batch of the recipe's views, masks and draws, of images of noise."""
    recipe = assembly.recipe
    with tempfile.TemporaryDirectory(prefix="twinview-plan-") as folder:
        rng = np.random.default_rng(0)
        for i in range(images):
            np.save(Path(folder) / f"{i}.npy", rng.integers(0, 256, (SIDE, SIDE, recipe.data.channels), dtype=np.uint8))
        shards = open_shards(f"images:{folder}")
        batch, _ = ViewDataset(recipe, attrs.evolve(dims, classes=0), shards, assembly).collate([(0, i) for i in range(images)])
        shards.close()
    labels = {"class": torch.zeros(images, dtype=torch.int64)} if dims.classes else {}
    for view, (h, w) in enumerate(dims.sizes):
        if "label_maps" in dims.wants:
            labels[f"map/{view}"] = torch.zeros(images, h, w, dtype=torch.int64)
        if "objects" in dims.wants:  # one an image, of a quarter of its area
            boxes, ones = torch.tensor([0.0, 0, w / 2, h / 2]).expand(images, 1, 4), torch.ones(images, 1, dtype=torch.int64)
            labels |= {f"objects/{view}/boxes": boxes, f"objects/{view}/classes": ones, f"objects/{view}/crowd": ones == 0}
            labels[f"objects/{view}/masks"] = torch.ones(images, 1, h, w, dtype=torch.bool)
    return batch._replace(labels=labels)


class NoiseData(DataFactory):
    """A data set that is one batch."""

    def __init__(self, model: Siamese, batch: Batch) -> None:
        self.batch, self.features, self.alignment = batch, model.features, model.alignment  # type: ignore[method-assign]

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.batch.images[0].shape[1]

    def views(self, epoch: int) -> Iterator[Batch]:
        """The batch, whatever the epoch."""
        yield self.batch

    def plain(self, shards: str | Sequence[str] | None = None, *, size: Size, **_: object) -> Iterator[PlainBatch]:
        """The first views, in place of whole images."""
        yield PlainBatch(self.batch.keys, self.batch.ids, F.interpolate(self.batch.images[0].float(), size), {})

    def class_names(self, shards: str | Sequence[str] | None = None) -> tuple[str, ...]:
        """None: nothing is compared."""
        return ()


def with_samples(model: Siamese, batch: Batch) -> Branches:
    """The model's branches; where a part asks for what it keeps by sample, its `before_epoch` makes that of `batch` first."""
    branches, assembly, data = model.branches, model.assembly, NoiseData(model, batch)
    model.stores.samples = len(batch.keys)

    def samples(part: object, name: str, epoch: int) -> SampleStore:
        try:
            return branches.samples(part, name, epoch)
        except CheckpointError:
            label = next(label for label, one in assembly.parts.items() if one is part)
        rng, progress = generator(assembly.recipe.run.seed, "before_epoch", label, epoch), Progress(0, 1, epoch, 0.0)
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):  # the loss that asks may be in low precision
            assembly.only("before_epoch", label)(branches=branches._replace(reset=_keep), data=data, progress=progress, rng=rng)
        return branches.samples(part, name, epoch)

    return branches._replace(samples=samples)


def _keep(part: object, head: str) -> None:
    """A head that is drawn anew has the bytes that it had."""
