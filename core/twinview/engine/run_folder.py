"""A run's folder: what it was made of, where it stands, and whether a recipe may go on in it."""
from __future__ import annotations

import datetime
import json
import platform
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import tomli_w

from twinview.assembly import assemble
from twinview.data.remote.base import without_queries
from twinview.engine.checkpoint import Checkpoint, find_checkpoint, steps_in
from twinview.engine.metrics import read_metrics
from twinview.engine.resumable import may_change
from twinview.errors import CheckpointError, TwinviewError
from twinview.files import write_text
from twinview.recipe import from_table
from twinview.recipe.leaves import flat
from twinview.recipe.tables import FORMAT
from twinview.terminal import say

Resume = Literal["auto"] | bool
FIRST_ORDER = 1  # of [data] order
PACKAGES = ("twinview", "torch", "torchvision", "deepspeed", "webdataset", "timm", "numpy", "attrs", "cattrs", "pluggy")


# ---- the folder
def check_folder(folder: Path, resume: Resume) -> None:
    """Refuse to start over a run that has made a step, or to go on where there is none.  Raises CheckpointError."""
    begun = bool(steps_in(folder / "checkpoints")) or any(read_metrics(folder / "metrics.jsonl"))
    if begun and not resume:
        raise CheckpointError(f"{folder}: holds a run already. Write resume=True to go on with it, or run=DIR for another folder.")
    if resume is True and not begun and not (folder / "recipe.toml").is_file():
        raise CheckpointError(f"{folder}: holds no run to go on with. Leave resume=True out to start one.")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"{folder}: cannot be made: {nearest} is a file. Name another folder with run=DIR.")


def make_folder(folder: Path) -> None:
    """Make a run's folder, where it is not there yet.  Raises CheckpointError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be made: {e.strerror}. Name another folder with run=DIR.") from None


def find_start(folder: Path, table: Mapping[str, Any], data: str, resume: Resume) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run.  Raises CheckpointError where `resume` does not fit what `folder` holds.

    `table`: the recipe as resolved; `data`: checksum of the shards.  "auto" goes on where there is a checkpoint and starts where there is none.
    """
    check_folder(folder, resume)
    if not resume:
        return None
    if not steps_in(folder / "checkpoints"):
        reached = max((row["step"] for row in read_metrics(folder / "metrics.jsonl")), default=0)
        if reached > max(table["run"]["checkpoint_every"], _every(folder)):
            raise CheckpointError(f"{folder}: has made {reached} steps, and its checkpoints are gone. Start another run with run=DIR.")
        if (folder / "recipe.toml").exists():  # killed before its first checkpoint
            say(f"{folder}: holds no checkpoint yet. Starting at the first step.")
        return None
    found = find_checkpoint(folder / "checkpoints")
    began = found.meta.get("recipe", {})
    changed = list(differences(without_queries(began), table)) and list(differences(without_queries(_as_now(began)), table))
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise CheckpointError(
            f"{folder}: the run began with another recipe: {', '.join(changed[:5])}{more}. Write these as they were, or run=DIR for another run."
        )
    if found.meta.get("data") != data:
        raise CheckpointError(f"{folder}: the run began with other shards. Name the same in [data], or start another run with run=DIR.")
    return found


def _every(folder: Path) -> int:
    """[run] checkpoint_every as the sitting before had it; 0 where its recipe cannot be read."""
    try:
        return int(tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))["run"]["checkpoint_every"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def order_of(folder: Path) -> int:
    """[data] order of a run that goes on, as its newest readable checkpoint says; recipes from before there was this key have the first."""
    for step in reversed(steps_in(folder / "checkpoints")):
        try:
            meta = json.loads((folder / "checkpoints" / f"step-{step:06d}" / "meta.json").read_text(encoding="utf-8"))
            return int(meta["recipe"]["data"].get("order", FIRST_ORDER))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # what is wrong with it is said when it is read
    return 0


def _as_now(before: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe that an earlier version resolved, with the defaults of keys that came since: they leave its run as it was."""
    try:
        return assemble(from_table({**before, "data": {"order": FIRST_ORDER, **before["data"]}})).table()
    except TwinviewError:
        return before  # something of it is gone; the differences name it


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """`run.batch_size 32 -> 64` for every key of two resolved recipes that may change what is learned."""
    old, new = dict(flat(before)), dict(flat(now))
    for key in [*old, *(k for k in new if k not in old)]:
        if not may_change(key) and old.get(key) != new.get(key):
            yield f"{key} {_said(old, key)} -> {_said(new, key)}"


def _said(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "(not there)"


def write_run(folder: Path, table: Mapping[str, Any], metadata: Mapping[str, Any], sitting: Mapping[str, Any], *, fresh: bool) -> None:
    """Write `recipe.toml` and `manifest.json`; a resumed run adds a sitting to the manifest.

    `metadata`: what holds for the whole run (methods, data); `sitting`: what holds from this start on (command, ranks, device, step).
    """
    if fresh:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # what a kill before the first checkpoint left
    (folder / "checkpoints").mkdir(exist_ok=True)
    write_text(folder / "recipe.toml", tomli_w.dumps(dict(table)))
    path = folder / "manifest.json"
    before = [] if fresh else _sittings(path)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    now = {"started": started, **sitting, "machine": platform.platform(), "python": platform.python_version(), "versions": versions()}
    write_text(path, json.dumps({"format": FORMAT, **metadata, "sittings": [*before, now]}, indent=2) + "\n")


def _sittings(path: Path) -> list[Any]:
    """What the manifest tells of earlier starts; a damaged one tells nothing, and stops no run."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["sittings"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def versions() -> dict[str, str]:
    """Installed versions of what a run's numbers may depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
