"""The recipe in a run's folder.  The folder may be a stranger's: what its recipe allows itself counts for nothing."""
from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from twinview.data.dataset.open import expand
from twinview.data.remote.shard import is_remote
from twinview.errors import CheckpointError
from twinview.recipe import Recipe, read
from twinview.recipe.tables import HELD_OUT

NAME = "recipe.toml"
SETS = ("train", "val")  # options of evaluations that name shards


def run_recipe(run: Path, overrides: Iterable[str] = (), *, programs: Sequence[str] = ()) -> Recipe:
    """A run's recipe with overrides.  Programs that `pipe:` may run are those that `overrides` (data.allow_pipes) or `programs` name, and no others.

    Raises CheckpointError where the folder is none of a run, RecipeError.
    """
    if not (run / NAME).is_file():
        raise CheckpointError(f"{run}: is no run's folder: it holds no {NAME}. Give the folder that `twinview train` wrote.")
    return _found(read(run / NAME, [f"data.allow_pipes={json.dumps(list(programs))}", *overrides]), _began(run))


def _began(run: Path) -> str:
    """The folder that the run was started in last, which relative paths of its recipe are of; empty where its manifest does not say."""
    try:
        return str(json.loads((run / "manifest.json").read_text(encoding="utf-8"))["sittings"][-1]["folder"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _found(recipe: Recipe, began: str) -> Recipe:
    """The recipe with relative paths of shards from `began`, where they are there and not here."""
    if not began or os.path.realpath(began) == os.getcwd():
        return recipe

    def moved(value: Any) -> Any:
        return [_moved(one, began) for one in value] if isinstance(value, list) else _moved(value, began) if isinstance(value, str) else value

    sources = [attrs.evolve(source, shards=moved(source.shards)) for source in recipe.data.source]
    data = attrs.evolve(recipe.data, shards=moved(recipe.data.shards), source=sources)
    evaluations = [
        attrs.evolve(use, options={key: moved(value) if key in SETS else value for key, value in use.options.items()}) for use in recipe.evaluate
    ]
    return attrs.evolve(recipe, data=data, evaluate=evaluations)


def _moved(spec: str, began: str) -> str:
    if is_remote(spec) or spec.startswith("scenes:") or spec in ("", HELD_OUT):
        return spec
    scheme, path = ("images:", spec.removeprefix("images:")) if spec.startswith("images:") else ("", spec)
    there = os.path.join(began, os.path.expanduser(path))
    return scheme + there if _is_there(there) and not _is_there(os.path.expanduser(path)) else spec


def _is_there(path: str) -> bool:
    return bool(glob.glob(next(expand(path), path)))
