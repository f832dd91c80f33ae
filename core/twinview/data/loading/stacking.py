"""Items to a batch."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinview.data.loading.cutting import stacked
from twinview.data.loading.item import Item
from twinview.data.loading.repeats import stacked_draws
from twinview.data.loading.view_labels import stacked_labels
from twinview.errors import PluginError
from twinview.values import Batch, Geometry


def collate(items: Sequence[Item], even: str = "") -> Batch:
    """Items of one epoch -> a Batch.  `even`: the place of masks that hide as many cells of a view in every image, else they may differ."""
    first = items[0]
    views = range(len(first.images))

    def stack(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([t[name] for t in tensors]) for name in tensors[0]}

    geometries = [item.geometry for item in items]
    hidden = [stacked_masks([item.hidden[v] for item in items], even, v) for v in views]
    return Batch(
        keys=tuple(item.key for item in items),
        ids=torch.tensor([item.id for item in items]),
        seeds=torch.tensor([item.seed for item in items]),
        epoch=first.epoch,
        images=tuple(stacked([item.images[v] for item in items]) for v in views),
        geometry=Geometry(
            boxes=torch.stack([g.boxes for g in geometries]),
            flips=torch.stack([g.flips for g in geometries]),
            source=torch.stack([g.source for g in geometries]),
            sizes=first.geometry.sizes,
            pairs=first.geometry.pairs,
            notes=stack([g.notes for g in geometries]),
            draws=first.geometry.draws,
            cut_from=first.geometry.cut_from,
            sets=first.geometry.sets,
        ),
        hidden=tuple(hidden),
        augment=tuple(stacked_draws([item.augment[v] for item in items if item.augment]) for v in views) if first.augment else None,
        labels=stacked_labels([item.labels for item in items]),
        places=torch.tensor([item.id for item in items]),  # until `training_batches` knows them
    )


def stacked_masks(masks: Sequence[Tensor | None], even: str, view: int) -> Tensor | None:
    """[B, h*w] bool of a view, None where no image has a mask; one without hides nothing.  `even`: as `collate` has it."""
    some = next((mask for mask in masks if mask is not None), None)
    if some is None:
        return None
    whole = torch.stack([torch.zeros_like(some) if mask is None else mask for mask in masks])
    counts = sorted(set(whole.sum(1).tolist())) if even else []
    if len(counts) > 1:
        instead = 'Hide as many in every image, or say Traits(gives=frozenset({"uneven_masks"})), for encoders that put a mask token there'
        raise PluginError(f"{even}: hides {counts[0]} cells of view {view} in one image and {counts[-1]} in another. {instead}.")
    return whole
