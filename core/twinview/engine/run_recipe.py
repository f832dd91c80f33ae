"""The recipe in a run's folder.  The folder may be a stranger's: what its recipe allows itself counts for nothing."""
from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from twinview.errors import CheckpointError
from twinview.recipe import Recipe, read

NAME = "recipe.toml"


def run_recipe(run: Path, overrides: Iterable[str] = (), *, programs: Sequence[str] = ()) -> Recipe:
    """A run's recipe with overrides.  Programs that `pipe:` may run are those that `overrides` (data.allow_pipes) or `programs` name, and no others.

    Raises CheckpointError where the folder is none of a run, RecipeError.
    """
    if not (run / NAME).is_file():
        raise CheckpointError(f"{run}: is no run's folder: it holds no {NAME}. Give the folder that `twinview train` wrote.")
    return read(run / NAME, [f"data.allow_pipes={json.dumps(list(programs))}", *overrides])
