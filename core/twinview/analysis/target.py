"""What `twinview evaluate` scores: a run, an exported file, a checkpoint of another project, or weights that a library publishes by name."""
from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from twinview.assembly import answered, find_part, installed, methods, pluggy_manager
from twinview.engine.run_recipe import NAME, run_recipe
from twinview.errors import CheckpointError, RecipeError, closest
from twinview.ops.weights import FILES
from twinview.paths import expand
from twinview.recipe import Recipe, find, override, read
from twinview.values import Pretrained

FROZEN = "frozen/weights"  # the recipe of an encoder that is no run's
COLORS = ("mean", "std", "white")  # of [data], as an exported file says them


class Target(NamedTuple):
    """An encoder to score."""

    name: str  # as it was written
    recipe: Recipe
    run: Path | None  # whose checkpoint is scored; None: what [encoder] weights names
    scores: Path  # the file that keeps its scores


def find_target(target: str, overrides: Sequence[str] = (), shards: str | list[str] = "") -> Target:
    """The target of that name; `overrides`: keys of its recipe; `shards`: what [data] names where the target is no run.

    Overrides of the encoder make a run's weights those of another encoder: its last block's class token for its mean, say.
    Raises RecipeError, CheckpointError.
    """
    others = _encoder_of_name(target)
    if others is not None:
        folder = Path("runs") / target.replace(":", "-").replace("/", "-")
        return Target(target, _frozen(others, shards, overrides), None, folder / "scores.json")
    path = expand(target, "TARGET")
    if path.is_dir():
        if any(text.startswith("encoder.") for text in overrides):
            recipe = run_recipe(path)
            table = recipe.table()
            data = {key: table["data"][key] for key in (*COLORS, "channels") if key in table["data"]}
            own = {"encoder": {**table["encoder"], "weights": str(path), "weights_key": ""}, "data": data}
            return Target(target, _frozen(own, shards, overrides), None, path / "scores.json")
        return Target(target, run_recipe(path, overrides), path, path / "scores.json")
    if path.is_file() and path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
        return Target(target, _frozen(_exported(path), shards, overrides), None, Path(f"{path}.scores.json"))
    if path.is_file():
        if not any(text.startswith("encoder.use=") for text in overrides):
            example = "encoder.use=torchvision.resnet encoder.name=resnet50"
            raise RecipeError(f"{target}: holds weights alone. Say of which network they are: {example}, or encoder.use=timm.encoder.")
        table = {"encoder": {"weights": str(path)}}
        return Target(target, _frozen(table, shards, overrides), None, Path(f"{path}.scores.json"))
    if path.suffix in FILES:
        raise CheckpointError(f"{target}: there is no such file.")
    raise CheckpointError(f"{target}: is no run's folder: it holds no {NAME}. Give the folder that `twinview train` wrote, a file or METHOD:NAME.")


def _frozen(table: Mapping[str, Any], shards: str | list[str], overrides: Sequence[str]) -> Recipe:
    """The recipe in which nothing is trained, with this encoder."""
    whole = tomllib.loads(find(FROZEN).read_text(encoding="utf-8"))
    whole["encoder"] = dict(table["encoder"])
    whole["data"] = {**whole["data"], **table.get("data", {}), **({"shards": shards} if shards else {})}
    return read(override(whole, overrides))


def _exported(path: Path) -> dict[str, Any]:
    """The encoder's and the data's tables of what `twinview export` wrote."""
    beside = path.with_suffix(".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        encoder = {**said["encoder"], "weights": str(path)}
        data = {key: said[key] for key in COLORS}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise CheckpointError(f"{beside}: is not what `twinview export` writes beside its file. Export the run again.") from None
    encoder.pop("weights_key", None)
    return {"encoder": encoder, "data": {**data, "channels": len(data["mean"])}}


def _encoder_of_name(target: str) -> dict[str, Any] | None:
    """`timm:NAME`: the tables of weights that an encoder's library publishes; None for what is no such name."""
    method, colon, name = target.partition(":")
    if not colon or Path(target).exists() or not method.isidentifier():
        return None
    makers = {
        part: cls
        for _, _, parts in installed(method) if isinstance(parts, Mapping)
        for part, cls in parts.items() if "make_encoder" in answered(cls) and hasattr(cls, "pretrained")
    } if method in methods() else {}
    if not makers:
        known = [m for m, _, parts in installed() if isinstance(parts, Mapping) and any(hasattr(cls, "pretrained") for cls in parts.values())]
        raise RecipeError(f"{target}: no method {method!r} publishes weights by name.{closest(method, known)}")
    part = next(iter(makers))
    cls = find_part(pluggy_manager(), method, part, target)
    found = cast(Pretrained, cast(Any, cls).pretrained(name))
    data = {key: list(numbers) for key, numbers in (("mean", found.mean), ("std", found.std)) if numbers}
    return {"encoder": {"use": f"{method}.{part}", **found.options}, "data": data}
