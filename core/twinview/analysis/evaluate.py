"""An evaluation of a finished run, by itself."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import torch

from twinview.assembly import Assembly, answered, installed
from twinview.assembly.checks import naming_evaluations
from twinview.data.dataset.open import open_data
from twinview.data.dataset.statistics import with_measured
from twinview.data.loading.factory import Factory, Paths
from twinview.data.remote.base import without_queries
from twinview.engine.checkpoint import find_checkpoint, load_model
from twinview.engine.distributed.process import join, on_first
from twinview.engine.run_recipe import run_recipe
from twinview.errors import RecipeError, closest
from twinview.model import make_model
from twinview.ops.seeding import generator
from twinview.progress import waiting
from twinview.recipe import PartConfig, Recipe
from twinview.values import DataFactory, Progress


def evaluations() -> dict[str, list[str]]:
    """Every installed part that answers `evaluate`, by its full name and by its short one, which parts of several methods may share."""
    found: dict[str, list[str]] = {}
    for method, _, parts in installed():
        for name, cls in parts.items() if isinstance(parts, Mapping) else ():
            if "evaluate" in answered(cls):
                found.setdefault(name, []).append(f"{method}.{name}")
                found[f"{method}.{name}"] = [f"{method}.{name}"]
    return found


def evaluation_recipe(run: Path, what: str, shards: str | None, options: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The run's recipe with one evaluation: the run's own of that name or kind, if it has one, with `options` over it and `shards` to score on.

    `overrides`: of other keys of the recipe, such as data.shards where the run's own have moved.  Raises RecipeError, CheckpointError.
    """
    recipe = run_recipe(run, overrides)
    use = _asked(recipe, what)
    given = {**use.options, **options, **({"val": shards} if shards else {})}
    return attrs.evolve(recipe, evaluate=[attrs.evolve(use, options=given)])


def _asked(recipe: Recipe, what: str) -> PartConfig:
    """The evaluation of the recipe that has this name; or the one of this kind, or a new one."""
    for use in recipe.evaluate:
        if use.label == what:
            return use
    known = evaluations()
    if what not in known:
        raise RecipeError(f"evaluate: no installed part evaluates {what!r}.{closest(what, [*known, *(use.label for use in recipe.evaluate)])}")
    if len(known[what]) > 1:
        raise RecipeError(f"evaluate: {what!r} is {' or '.join(known[what])}. Write one of them in full.")
    (kind,) = known[what]
    own = [use for use in recipe.evaluate if use.use == kind]
    if len(own) > 1:
        raise RecipeError(f"evaluate: the run has {len(own)} evaluations {kind}: {', '.join(use.label for use in own)}. Write the name of one.")
    return own[0] if own else PartConfig(use=kind)


def evaluate(assembly: Assembly, run: Path, step: int | None = None) -> dict[str, float]:
    """Scores of the assembled recipe's one evaluation on a checkpoint of `run` (the last, or that of `step`); every rank calls it.

    Adds a line to the run's `evaluations.jsonl`.  Raises TwinviewError.
    """
    ranks = join(assembly.recipe.run.device)
    shards = open_data(assembly.recipe.data)
    recipe = with_measured(assembly.recipe, shards)
    assembly = assembly.under(recipe)
    model = make_model(assembly, len(shards), shards.classes, weights=False, data=cast(DataFactory, Paths(recipe))).to(ranks.device)
    checkpoint = find_checkpoint(run / "checkpoints", step)
    load_model(checkpoint, model, ranks.rank, ranks.world)
    model.eval()
    data = Factory(recipe, model.dims, shards, ranks.rank, ranks.world, model.features, model.alignment)
    progress = Progress(0, checkpoint.step, 0, 1.0)
    (label,) = (use.label for use in recipe.evaluate)
    scores: dict[str, float] = {}
    data.doing = f"evaluate {label}"
    with torch.no_grad(), naming_evaluations(assembly, label), waiting(data.doing):
        if label in assembly.answers("before_epoch"):
            rng = generator(recipe.run.seed, "before_epoch", label, progress.epoch)
            assembly.only("before_epoch", label)(branches=model.branches, data=data, progress=progress, rng=rng)
        for answer in assembly.only("evaluate", label)(branches=model.branches, data=data, progress=progress):
            scores |= {name: float(value) for name, value in answer.items()}
    use = recipe.evaluate[0]
    on_first(lambda: _note(run, {"step": checkpoint.step, "use": use.use, "name": use.label, **without_queries(use.options), **scores}))
    return scores


def _note(run: Path, row: Mapping[str, Any]) -> None:
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
