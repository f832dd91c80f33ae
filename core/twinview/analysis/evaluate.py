"""One evaluation of a finished run, or of any encoder's weights, by itself."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import attrs
import torch

from twinview.analysis.scores import FLOORS, record
from twinview.analysis.targets import Target
from twinview.assembly import Assembly, answered, find_part, installed, options, pluggy_manager
from twinview.assembly.checks import naming_evaluations
from twinview.data.dataset.open import open_data
from twinview.data.dataset.statistics import with_measured
from twinview.data.loading.factory import Factory, Paths
from twinview.data.loading.feature_cache import weights_hash
from twinview.data.remote.base import without_queries
from twinview.engine.checkpoint import best_of, find_checkpoint, load_model, read_checkpoint, steps_in
from twinview.engine.distributed.process import join, on_first
from twinview.engine.run_folder import versions
from twinview.engine.setup import check_classes
from twinview.errors import CheckpointError, RecipeError, closest
from twinview.model import make_model
from twinview.ops.seeding import generator
from twinview.progress import waiting
from twinview.recipe import PartConfig, Recipe
from twinview.values import DataFactory, Progress


class Evaluated(NamedTuple):
    """What an evaluation gave."""

    scores: dict[str, float]
    row: dict[str, Any]  # what it is a score of, as scores.json has it
    said: str  # whether it is new, or what changed


def evaluations() -> dict[str, list[str]]:
    """Every installed part that answers `evaluate`, by its full name and by its short one, which parts of several methods may share."""
    found: dict[str, list[str]] = {}
    for method, _, parts in installed():
        for name, cls in parts.items() if isinstance(parts, Mapping) else ():
            if "evaluate" in answered(cls):
                found.setdefault(name, []).append(f"{method}.{name}")
                found[f"{method}.{name}"] = [f"{method}.{name}"]
    return found


def evaluation_recipe(recipe: Recipe, what: str, shards: str | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe with one evaluation: its own of that name or kind, if it has one, with the options `given` over it and `shards` to score on.

    Where nothing says otherwise every floor that the part knows is scored beside it.  Raises RecipeError.
    """
    use = _asked(recipe, what)
    mine = {**use.options, **given, **({"val": shards} if shards else {})}
    if "baselines" not in given and not use.options.get("baselines"):
        mine |= _floors(use.use)
    return attrs.evolve(recipe, evaluate=[attrs.evolve(use, options=mine)])


def _floors(use: str) -> dict[str, list[str]]:
    """The option `baselines` with all floors that the part takes, where it has that option."""
    method, _, name = use.partition(".")
    cls: Any = find_part(pluggy_manager(), method, name, use)
    taken = get_type_hints(cls).get("baselines")
    if taken is None:
        return {}
    named = [floor for kind in get_args(taken) for floor in get_args(kind)]  # of list[Literal["random"]]; a list of any text names none
    return {"baselines": [floor for floor in FLOORS if floor in (named or FLOORS)]}


def _asked(recipe: Recipe, what: str) -> PartConfig:
    """The evaluation of the recipe that has this name; or the one of this kind, or a new one."""
    for use in recipe.evaluate:
        if use.label == what:
            return use
    known = evaluations()
    if what not in known:
        raise RecipeError(f"evaluate: no installed part evaluates {what!r}.{closest(what, known)}")
    if len(known[what]) > 1:
        raise RecipeError(f"evaluate: {what!r} is {' or '.join(known[what])}. Write one of them in full.")
    (kind,) = known[what]
    own = [use for use in recipe.evaluate if use.use == kind]
    if len(own) > 1:
        raise RecipeError(f"evaluate: the run has {len(own)} evaluations {kind}: {', '.join(use.label for use in own)}. Write the name of one.")
    return own[0] if own else PartConfig(use=kind)


def evaluate(assembly: Assembly, target: Target, best: bool = False, command: str = "") -> Evaluated:
    """Scores of the assembled recipe's one evaluation on a target, of a run its checkpoint or the `best`; every rank calls it.

    Keeps them in the target's `scores.json`.  Raises TwinviewError.
    """
    ranks = join(assembly.recipe.run.device)
    shards = open_data(assembly.recipe.data)
    recipe = with_measured(assembly.recipe, shards)
    assembly = assembly.under(recipe, alone=True)
    check_classes(assembly, shards)
    checked = cast(DataFactory, Paths(recipe))
    model = make_model(assembly, len(shards), shards.classes, weights=target.run is None, data=checked).to(ranks.device)
    step, source = 0, {"weights": str(recipe.encoder.options.get("weights", ""))}
    if target.run is not None:
        folder, asked = target.run / "checkpoints", _best(target.run) if best else target.step
        found = on_first(lambda: find_checkpoint(folder, asked).step)  # the run may go on meanwhile: one rank looks for all
        checkpoint = read_checkpoint(folder / f"step-{found:06d}")
        load_model(checkpoint, model, ranks.rank, ranks.world)
        step, source = checkpoint.step, _named(target.run, checkpoint.step)
    model.eval()
    data = Factory(recipe, model.dims, shards, ranks.rank, ranks.world, model.features, model.alignment)
    data.keeps = True
    progress = Progress(0, step, 0, 1.0)
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
    row = {
        "use": use.use,
        "name": use.label,
        "checkpoint": {**source, "encoder": weights_hash([model.online.encoder])},
        "protocol": options(assembly.parts[label]),
        "data": [{"shards": name, "checksum": found} for name, found in data.checksums.items()],
        "seed": recipe.run.seed,
        "overrides": [*target.overrides],
        "command": command,
        "versions": versions(),
    }
    plain: dict[str, Any] = without_queries(row)
    return Evaluated(scores, plain, on_first(lambda: record(target.scores, plain, scores)))


def _best(run: Path) -> int:
    """The step of the checkpoint that is marked as the best."""
    found = best_of(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run}: marks no checkpoint as the best. Train with run.keep_best = \"knn/top1\", or leave --best out.")
    return found[0]


def _named(run: Path, step: int) -> dict[str, Any]:
    """A checkpoint of a run: its step, and whether it is the last and the best."""
    best = best_of(run / "checkpoints")
    return {"step": step, "last": step == max(steps_in(run / "checkpoints"), default=step), "best": best is not None and best[0] == step}
