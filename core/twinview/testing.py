"""Every combination of installed parts, small enough to train in seconds: what mixes, and what is refused with which reason.

For twinview's own tests and for those of anyone who publishes a method: a part is in it by being installed.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from twinview.assembly import answered, assemble, installed
from twinview.data.shards import open_shards
from twinview.data.views import Views
from twinview.engine.optimizer import make_optimizer
from twinview.errors import RecipeError
from twinview.recipe import from_table
from twinview.step import Siamese
from twinview.values import Progress

SLOTS = {"views": "sample_views", "masks": "make_masks", "align": "align", "loss": "loss", "encoder": "make_encoder"}  # slot -> its hook
OPTIONAL = ("masks", "align")
NONE = "none"
IMAGES, STEPS, SIDE = 4, 20, 64  # of a batch; of an attempt; pixels of a view
SMALL: dict[str, Any] = {  # options by name, for any part that has them
    "channels": 16,
    "hidden": 16,
    "predictor_hidden": 8,
    "clusters": 3,
    "regions": 3,
    "attention_heads": 2,
    "projector_depth": 1,
}
TINY_VIT = {"name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 2, "heads": 2, "img_size": SIDE}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # parts that are several things, or whose defaults are large
    "torchvision.resnet": {"": {"name": "resnet18", "stride": 16}},
    "timm.encoder": {
        " (vit, drop)": {**TINY_VIT, "positions": "sine_row"},
        " (vit, mask token)": {**TINY_VIT, "hide": "mask_token"},
        " (convnext)": {"name": "test_convnext"},
        " (resnet)": {"name": "test_resnet"},
    },
    "siameseim.relative": {"": {"depth": 1}},
}

Combination = Mapping[str, str]  # slot -> a name of `choices`


@attrs.frozen(kw_only=True)
class Attempt:
    """What came of a combination."""

    refused: str = ""  # the one line with the reason; empty: it trained
    losses: tuple[float, ...] = ()  # of each step
    untouched: tuple[str, ...] = ()  # parameters that the optimizer moves and no gradient reached in any step

    @property
    def trains(self) -> bool:
        """Finite throughout, lower at the end than at the start, gradients everywhere."""
        finite = all(loss == loss and abs(loss) < float("inf") for loss in self.losses)
        return bool(self.losses) and finite and self.losses[-1] < self.losses[0] and not self.untouched


def choices() -> dict[str, dict[str, dict[str, Any] | None]]:
    """Slot -> name -> the part's small table; `none` where a slot may be left out.  Every installed part that can be loaded."""
    found: dict[str, dict[str, dict[str, Any] | None]] = {slot: {NONE: None} if slot in OPTIONAL else {} for slot in SLOTS}
    for method, _, parts in installed():
        for name, cls in parts.items() if isinstance(parts, Mapping) else ():
            for slot, hook in SLOTS.items():
                if hook in answered(cls):
                    label = f"{method}.{name}"
                    for suffix, options in VARIANTS.get(label, {"": {}}).items():
                        found[slot][label + suffix] = {"use": label, **_small(cls, slot), **options}
    return found


def _small(cls: type, slot: str) -> dict[str, Any]:
    fields = {f.name: f for f in attrs.fields(cls)}
    small = {name: value for name, value in SMALL.items() if name in fields}
    if slot == "views" and "size" in fields:
        small["size"] = [SIDE, SIDE] if isinstance(fields["size"].default, tuple) else SIDE
    return small


def product() -> Iterator[Combination]:
    """Every combination."""
    found = choices()
    for names in itertools.product(*found.values()):
        yield dict(zip(found, names))


def pairs_cover() -> list[Combination]:
    """Few combinations in which every two names of two slots meet (all-pairs testing), the same ones each time."""
    every = list(product())
    missing = {pair for combination in every for pair in itertools.combinations(combination.items(), 2)}
    chosen: list[Combination] = []
    while missing:
        best = max(every, key=lambda c: len(missing.intersection(itertools.combinations(c.items(), 2))))  # the first of equals
        chosen.append(best)
        missing.difference_update(itertools.combinations(best.items(), 2))
    return chosen


def recipe_of(combination: Combination, shards: str) -> dict[str, Any]:
    """The recipe's tables."""
    found = choices()
    tables = {slot: found[slot][name] for slot, name in combination.items()}
    return {
        **{slot: table for slot, table in tables.items() if table is not None and slot != "loss"},
        "loss": [tables["loss"]],
        "target": {"momentum": 0.99},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": STEPS, "batch_size": IMAGES, "device": "cpu"},
    }


def attempt(combination: Combination, shards: str) -> Attempt:
    """Assemble a combination and take `STEPS` steps on one batch of `IMAGES` images of `shards`; or say why it is refused."""
    try:
        recipe = from_table(recipe_of(combination, shards))
        assembly, source = assemble(recipe), open_shards(shards)
        encoder = assembly.encoder()
        dims = assembly.dims(encoder, len(source), source.classes)
        model = Siamese(assembly, dims, encoder).train()
    except RecipeError as e:
        return Attempt(refused=str(e))
    batch, _ = Views(recipe, dims, source).collate([(0, i) for i in range(IMAGES)])
    optimizer, moved = make_optimizer(assembly, model.online)
    losses, untouched = [], set(moved)
    for step in range(STEPS):
        outcome = model(batch, Progress(step, STEPS, 0, step / STEPS))
        optimizer.zero_grad()
        outcome.loss.backward()
        untouched = {name for name in untouched if (grad := moved[name].grad) is None or not bool(torch.count_nonzero(grad))}
        optimizer.step()
        model.follow(recipe.target.momentum)
        losses.append(float(outcome.loss.detach()))
        if not torch.isfinite(outcome.loss):
            break
    return Attempt(losses=tuple(losses), untouched=tuple(sorted(untouched)))
