"""Every combination of installed parts, small enough to train in seconds: what mixes, and what is refused with which reason.

For twinview's own tests and for those of anyone who publishes a method: a part is in it by being installed.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import attrs
import numpy as np
import torch

from twinview.assembly import GROUP, SINGLE, answered, assemble, find_part, installed, option, pluggy_manager
from twinview.data.dataset.open import open_shards
from twinview.data.loading.views import ViewDataset
from twinview.engine.optimizer import make_optimizer
from twinview.errors import RecipeError
from twinview.model import Siamese, make_model
from twinview.recipe import from_table, structure
from twinview.values import Batch, PlainBatch, Progress, Traits

SLOTS = {"views": "sample_views", "masks": "make_masks", "align": "align", "loss": "loss", "encoder": "make_encoder"}  # slot -> its hook
OPTIONAL = ("masks", "align")
LEFT_OUT = (  # parts that want labeled shards, are not meant to train or to be kept, cluster more images than an attempt has, or want 224 pixels
    *("finetune.classes", "finetune.fcn", "finetune.upernet", "finetune.scaled_crops", "detection.rcnn"),
    *("supervised.classes", "supervised.nothing", "deepcluster.images", "deepcluster.alexnet", "tiny.encoder"),
)
NONE = "none"
IMAGES, STEPS, SIDE = 4, 20, 64  # of a batch; of an attempt, at most; pixels of a view
FELL = 4  # steps in a row whose loss lies below the first: enough
SMALL: dict[str, Any] = {  # options by name, for any part that has them
    "channels": 16,
    "hidden": 16,
    "predictor_hidden": 8,
    "clusters": 3,
    "regions": 3,
    "prototypes": 8,
    "queue": 8,
    "negatives": 8,
    "attention_heads": 2,
    "projector_depth": 1,
}
TINY_VIT = {"name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 2, "heads": 2, "img_size": SIDE}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {  # parts that are several things, or whose defaults are large
    "torchvision.resnet": {"": {"name": "resnet18", "stride": 16, "width": 16}},
    "timm.encoder": {
        " (vit, drop)": {**TINY_VIT, "positions": "sine_row"},
        " (vit, mask token)": {**TINY_VIT, "hide": "mask_token"},
        " (convnext)": {"name": "test_convnext"},
        " (resnet)": {"name": "test_resnet"},
    },
    "siameseim.relative": {"": {"depth": 1}},
    "mae.pixels": {"": {"width": 16, "depth": 1}},
    "iic.segmentation_net": {"": {"stem": [8], "body": [16], "dilated": [16]}},
    "iic.mutual_information": {"": {"displacement": 1, "grid": "cells"}},
    "picie.clusters": {"": {"initial": IMAGES, "iterations": 2}},
    "deepcluster.alexnet": {"": {"width": 0.1}},
    "deepcluster.images": {"": {"size": [SIDE, SIDE]}},
    "deepcluster.cells": {"": {"initial": IMAGES, "iterations": 2}},
}

Combination = Mapping[str, str]  # slot -> a name of `choices`
Choices = dict[str, dict[str, dict[str, Any] | None]]  # slot -> name -> table
Options = Mapping[str, Mapping[str, Any]]  # method.part -> options
NO_OPTIONS: Options = {}
Pair = tuple[tuple[str, str], ...]  # two names that meet, each with its slot


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


def choices(options: Options = NO_OPTIONS, offered: EntryPoints | None = None) -> Choices:
    """Slot -> name -> the part's small table; `none` where a slot may be left out.  Every installed part that can be loaded.

    `options`: of parts by `method.part`, where their defaults are too large to be tried: {"acme.contrast": {"queue": 8}}.
    """
    found = _installed_choices(tuple(entry_points(group=GROUP) if offered is None else offered))
    return {
        slot: {name: {**table, **options.get(table["use"], {})} if table is not None else None for name, table in tables.items()}
        for slot, tables in found.items()
    }


@functools.cache
def _installed_choices(offered: tuple[EntryPoint, ...]) -> Choices:
    """`choices` without further options, of these entry points: looked up once, not for every combination."""
    found: Choices = {slot: {NONE: None} if slot in OPTIONAL else {} for slot in SLOTS}
    for method, _, parts in installed(offered=EntryPoints(offered)):
        for name, cls in parts.items() if isinstance(parts, Mapping) else ():
            if not isinstance(cls, type) or not attrs.has(cls):
                continue  # no part: a recipe that names it is refused, and the others are tried all the same
            for slot, hook in SLOTS.items():
                label = f"{method}.{name}"
                if hook in answered(cls) and label not in LEFT_OUT:
                    for suffix, variant in VARIANTS.get(label, {"": {}}).items():
                        found[slot][label + suffix] = {"use": label, **_small(cls, slot), **variant}
    return found


def _small(cls: type, slot: str) -> dict[str, Any]:
    fields = {f.name: f for f in attrs.fields(cls)}
    small = {name: value for name, value in SMALL.items() if name in fields}
    if slot == "views" and "size" in fields:
        small["size"] = [SIDE, SIDE] if isinstance(fields["size"].default, tuple) else SIDE
    return small


def product(options: Options = NO_OPTIONS) -> Iterator[Combination]:
    """Every combination."""
    found = choices(options)
    for names in itertools.product(*found.values()):
        yield dict(zip(found, names))


def pairs_cover(options: Options = NO_OPTIONS) -> list[Combination]:
    """Few combinations in which every two names of two slots meet (all-pairs testing), the same ones each time.

    Two names that meet in any combination that assembles meet in such a one.
    """
    every = list(product(options))
    whole = assembling(every, options)
    found = cover(whole, names_that_meet(whole))
    return found + cover(every, names_that_meet(every) - names_that_meet(whole))


def names_that_meet(combinations: Iterable[Combination]) -> set[Pair]:
    """Every two names of one combination, each with its slot."""
    return {pair for combination in combinations for pair in itertools.combinations(combination.items(), 2)}


def cover(combinations: Sequence[Combination], missing: set[Pair]) -> list[Combination]:
    """Few of the combinations in which all `missing` names meet: each time the one in which most do, the first of equals."""
    bits = {pair: 1 << n for n, pair in enumerate(sorted(missing))}
    meet = [sum(bits.get(pair, 0) for pair in itertools.combinations(combination.items(), 2)) for combination in combinations]
    left, chosen = (1 << len(bits)) - 1, list[Combination]()
    while left:
        best = max(range(len(meet)), key=lambda i: (left & meet[i]).bit_count())
        chosen.append(combinations[best])
        left &= ~meet[best]
    return chosen


def assembling(combinations: Iterable[Combination], options: Options = NO_OPTIONS) -> list[Combination]:
    """Those that assemble.  One is tried for all whose parts are alike in what an assembly looks at."""
    found, tried, offered = choices(options), dict[tuple[Hashable, ...], bool](), entry_points(group=GROUP)
    looks = _looks(found)

    def assembles(combination: Combination) -> bool:
        key = tuple(looks.get(item, item) for item in combination.items())
        if key not in tried:
            try:
                tried[key] = bool(assemble(from_table(_recipe(found, combination, "none")), offered))
            except RecipeError:
                tried[key] = False
        return tried[key]

    return [combination for combination in combinations if assembles(combination)]


def _looks(found: Choices) -> dict[tuple[str, str], Hashable]:
    """(slot, name) -> what an assembly looks at: hooks that one part answers, options that name others, needs, gives that are needed."""
    manager, parts = pluggy_manager(), dict[tuple[str, str], Any]()
    for slot, tables in found.items():
        for name, table in tables.items():
            if table is not None:
                (method, _, own), given = table["use"].partition("."), {k: v for k, v in table.items() if k != "use"}
                with contextlib.suppress(RecipeError):  # one that cannot be made without more options is like no other
                    parts[slot, name] = structure(given, find_part(manager, method, own, name), name)
    traits = {key: part.traits() if "traits" in answered(type(part)) else Traits() for key, part in parts.items()}
    asked = frozenset({"hides", "uses_extra"}).union(*(t.needs for t in traits.values()))
    return {
        key: (
            frozenset(answered(type(part))).intersection((*SINGLE, "align")),
            tuple(option(part, word) is None for word in ("align", "head")),
            traits[key]._replace(gives=traits[key].gives & asked),
        )
        for key, part in parts.items()
    }


def recipe_of(combination: Combination, shards: str, options: Options = NO_OPTIONS) -> dict[str, Any]:
    """The recipe's tables."""
    return _recipe(choices(options), combination, shards)


def _recipe(found: Choices, combination: Combination, shards: str) -> dict[str, Any]:
    tables = {slot: found[slot][name] for slot, name in combination.items()}
    return {
        **{slot: table for slot, table in tables.items() if table is not None and slot != "loss"},
        "loss": [tables["loss"]],
        "target": {"momentum": 0.99},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": STEPS, "batch_size": IMAGES, "device": "cpu"},
    }


def attempt(combination: Combination, shards: str, options: Options = NO_OPTIONS) -> Attempt:
    """Assemble a combination and train it on one batch of `IMAGES` images of `shards`; or say why it is refused.

    It takes `STEPS` steps, or as many as it takes until the loss has been below the first for `FELL` steps and gradients have reached everything.
    """
    offered = entry_points(group=GROUP)
    try:
        recipe = from_table(_recipe(choices(options, offered), combination, shards))
        assembly, source = assemble(recipe, offered), open_shards(shards)
        model = make_model(assembly, len(source), source.classes).train()
    except RecipeError as e:
        return Attempt(refused=str(e))
    batch, _ = ViewDataset(recipe, model.dims, source, assembly).collate([(0, i) for i in range(IMAGES)])
    if assembly.has("before_epoch"):
        branches = model.branches._replace(reset=lambda part, head: None)
        data, progress = OneBatch(model, batch), Progress(0, STEPS, 0, 0.0)
        for label in assembly.answers("before_epoch"):
            assembly.only("before_epoch", label)(branches=branches, data=data, progress=progress, rng=np.random.default_rng(0))
    optimizer, trainable = make_optimizer(assembly, model.online)
    waiting = {id(p) for group in optimizer.param_groups if group["frozen_until"] for p in group["params"]}  # rest in the only epoch
    losses, untouched = [], {name for name, p in trainable.items() if id(p) not in waiting}
    for step in range(STEPS):
        outcome = model(batch, Progress(step, STEPS, 0, step / STEPS))
        optimizer.zero_grad()
        outcome.loss.backward()
        untouched = {name for name in untouched if (grad := trainable[name].grad) is None or not bool(torch.count_nonzero(grad))}
        optimizer.step()
        model.follow(recipe.target.momentum)
        losses.append(float(outcome.loss.detach()))
        fell = len(losses) > FELL and max(losses[-FELL:]) < losses[0]
        if not torch.isfinite(outcome.loss) or (fell and not untouched):
            break
    return Attempt(losses=tuple(losses), untouched=tuple(sorted(untouched)))


class OneBatch:
    """A data factory whose every epoch is one batch."""

    def __init__(self, model: Siamese, batch: Batch) -> None:
        self.features, self.alignment, self._batch, self._model = model.features, model.alignment, batch, model

    def views(self, epoch: int) -> Iterator[Batch]:
        """The batch."""
        yield self._batch

    def plain(self, **_: Any) -> Iterator[PlainBatch]:
        """The images of its first view."""
        images = (self._batch.images[0].float() - self._model.mean) / self._model.std
        yield PlainBatch(self._batch.keys, self._batch.ids, images, {})
