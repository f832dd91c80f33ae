"""What the command line does, from Python: `twinview.train(recipe)`, `twinview.load(run)`."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinview.errors import CheckpointError
from twinview.machine import rank_variable
from twinview.paths import expand
from twinview.recipe import Recipe, read

if TYPE_CHECKING:
    from torch import nn

    from twinview.assembly import Assembly
    from twinview.data.loading.factory import Factory
    from twinview.engine.setup import TrainSetup
    from twinview.engine.train import RunResult

RUNS = Path("runs")


def check(recipe: str | Path | Mapping[str, Any], *overrides: str) -> Assembly:
    """A recipe's parts, made and checked, with the device and the training data left alone: what training would refuse before its first step.

    Raises RecipeError, PluginError, DataError (shards of an evaluation that are not there).
    """
    from twinview.planning.sizes import check_sizes

    assembly = checked(read(recipe, overrides))
    check_sizes(assembly)
    return assembly


def checked(recipe: Recipe) -> Assembly:
    """All that can be refused of the composition alone, before a model is made."""
    from twinview.assembly import assemble
    from twinview.engine.deepspeed_config import check_recipe

    check_recipe(recipe)
    return assemble(recipe)


def train(
    recipe: str | Path | Mapping[str, Any],
    *overrides: str,
    run: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    ranks: int = 1,
) -> RunResult:
    """Train a recipe: a name, a .toml file or plain tables, with `table.key=value` overrides.

    `run` is the run's folder (default `runs/RECIPE`).  `resume=True` goes on with a run, `"auto"` starts or goes on.  `ranks` processes on this
    machine; under torchrun or the deepspeed launcher leave it at 1.  Raises TwinviewError.
    """
    made = read(recipe, overrides)
    assembly = checked(made)
    from twinview.engine.distributed.launch import launch
    from twinview.engine.run_folder import check_folder
    from twinview.engine.train import train as train_rank

    folder = run_folder(made, run)
    if is_first():
        check_folder(folder, resume)

    def draw(setup: TrainSetup, data: Factory) -> None:
        from twinview.analysis.figures import draw_trained, save_pictures

        pictures = draw_trained(setup.model, setup.shards, data)
        if setup.ranks.rank == 0:
            save_pictures(folder / "pictures", pictures)

    def work() -> RunResult:
        return train_rank(made, folder, assembly=assembly, resume=resume, command=" ".join(sys.argv), on_end=draw)

    result: RunResult = launch(ranks, work, device=made.run.device)
    return result


def is_first() -> bool:
    """Whether this process speaks for all: it is alone, or a launcher made it rank 0."""
    return rank_variable("RANK") == 0


def run_folder(recipe: Recipe, run: str | Path | None = None) -> Path:
    """Where a run is written: the folder given, or `runs/RECIPE`."""
    return expand(run, "--run") if run is not None else RUNS / recipe.name.replace("/", "-")


def load(run: str | Path, step: int | None = None) -> nn.Module:
    """The trained encoder of a run as an `nn.Module` in eval mode, from its last checkpoint or that of `step`.

    Called with images [B, C, H, W], normalised as the recipe's [data] says; gives `twinview.values.Features`.  Raises CheckpointError.
    """
    run = expand(run, "load")
    if not run.is_dir():
        raise CheckpointError(f"{run}: there is no such run. Give the folder that `twinview train` wrote.")
    from twinview.analysis.load import load_encoder

    return load_encoder(run, step)
