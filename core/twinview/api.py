"""What the command line does, from Python: `twinview.train(recipe)`, `twinview.load(run)`."""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinview.machine import rank_variable
from twinview.paths import expand
from twinview.recipe import Recipe, read

if TYPE_CHECKING:
    from PIL.Image import Image

    from twinview.analysis.features.embed import Embedding
    from twinview.analysis.features.files import FeatureFile
    from twinview.analysis.report.notebook import RunList, ShownResult
    from twinview.analysis.report.snapshots import Recorder
    from twinview.analysis.targets import LoadedEncoder
    from twinview.assembly import Assembly
    from twinview.data.loading.factory import Factory
    from twinview.engine.setup import TrainSetup
    from twinview.engine.train import RunResult

RUNS = Path("runs")


def check(recipe: str | Path | Mapping[str, Any], *overrides: str) -> Assembly:
    """A recipe's parts, made and checked, with the device and the training data left alone: what training would refuse before its first step.

    Raises RecipeError, PluginError, DataError (shards of an evaluation that are not there).
    """
    from twinview.planning.sizes import check_sizes, warn_of_weights

    assembly = checked(read(recipe, overrides))
    check_sizes(assembly)
    warn_of_weights(assembly.recipe)
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
) -> ShownResult:
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

    recorders: list[Recorder] = []

    def draw(setup: TrainSetup, data: Factory) -> None:
        from twinview.analysis.figures import draw_trained, save_pictures

        pictures = draw_trained(setup.model, setup.shards, data, f"{folder.resolve().name}, at its end")
        if setup.ranks.rank == 0:
            save_pictures(folder / "pictures", pictures)

    def moment(setup: TrainSetup, data: Factory, step: int, evaluated: bool) -> dict[str, Image]:
        from twinview.analysis.report.snapshots import Recorder, moment_pictures

        if not recorders:
            recorders.append(Recorder(folder, setup.model, setup.shards))
        return moment_pictures(recorders[0], setup, data, step, evaluated=evaluated)

    def work() -> RunResult:
        return train_rank(made, folder, assembly=assembly, resume=resume, command=" ".join(sys.argv), on_end=draw, on_moment=moment)

    from twinview.analysis.report.notebook import ShownResult

    return ShownResult.of(launch(ranks, work, device=made.run.device))


def runs(folder: str | Path = RUNS) -> RunList:
    """The runs in a folder, however deep, the one that wrote last first; each has `state`, `step`, `loss`, `scores`, `metrics`, `table`.

    Raises CheckpointError where there is no such folder.
    """
    from twinview.analysis.report.notebook import RunList
    from twinview.analysis.report.runs import find_runs

    return RunList(find_runs(expand(folder, "runs")))


def is_first() -> bool:
    """Whether this process speaks for all: it is alone, or a launcher made it rank 0."""
    return rank_variable("RANK") == 0


def run_folder(recipe: Recipe, run: str | Path | None = None) -> Path:
    """Where a run is written: the folder given, or `runs/RECIPE`."""
    return expand(run, "--run") if run is not None else RUNS / recipe.name.replace("/", "-")


def load(target: str | Path, step: int | None = None, branch: Literal["online", "target"] = "online") -> LoadedEncoder:
    """The encoder of a run, of a file of `twinview export`, or of a library's weights (`timm:NAME`, `torchvision:NAME`), in eval mode, on the CPU.

    Called with images [B, C, H, W], normalized; gives `twinview.values.Features`.  `encoder.transform(image)` makes such an image of a PIL image,
    a path or uint8 pixels, `encoder.normalize(batch)` a batch of uint8 pixels.  Of a run: its last checkpoint or that of `step`, and which `branch`.
    Raises CheckpointError, RecipeError.
    """
    from twinview.analysis.targets import find_target

    return find_target(target, step=step, branch=branch).loaded()


def embed(
    target: str | Path, images: str | Path | Sequence[str | Path], out: str | Path | None = None, *, features: Sequence[str] = ("pooled",),
    **options: Any,
) -> Embedding | int:
    """Features of images by an encoder: `target` as for `load`, `images` a folder or shards.

    With `out` (.parquet, .h5, .npy) they are written there, and their number is given; without, they are given in memory.  `features`: pooled,
    cells, the levels, `cells.mean` and its like, token, `token.N`.  `options`: size, crop, half, batch_size, workers, device, bad_images; see
    `analysis.features.embed.Options`.  Raises TwinviewError.
    """
    from twinview.analysis.features import embed as work
    from twinview.analysis.targets import find_target

    chosen = work.Options(features=tuple(features), **options)
    if out is None:
        return work.embed(find_target(target), work.open_images(images), chosen)
    return work.embed_to(find_target(target), work.open_images(images), expand(out, "out"), chosen)


def read_features(path: str | Path) -> FeatureFile:
    """What `embed` wrote: `keys`, `features` (name -> array) and `about`.  Raises DataError."""
    from twinview.analysis.features.files import read as read_file

    return read_file(expand(path, "read_features"))
