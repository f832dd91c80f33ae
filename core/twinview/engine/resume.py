"""Where a run starts: its folder is opened, or a checkpoint of it is gone on from."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twinview.data.remote.base import without_queries
from twinview.engine.checkpoint import Checkpoint, set_random_states
from twinview.engine.distributed.process import on_first
from twinview.engine.loss_scale import scale_of
from twinview.engine.run_folder import Resume, find_start, write_run
from twinview.engine.setup import TrainSetup
from twinview.engine.zero import load_whole_optimizer_state
from twinview.errors import CheckpointError
from twinview.terminal import say


def start_run(setup: TrainSetup, folder: Path, resume: Resume, command: str) -> tuple[Checkpoint | None, dict[str, Any]]:
    """Write the run's recipe and manifest; the checkpoint to go on from, if any, and what every checkpoint says of the run.

    Every rank calls it.  Raises CheckpointError where `resume` does not fit what `folder` holds.
    """
    table, data = without_queries(setup.assembly.table()), str(setup.shards.checksum)
    meta = {"data": data, "recipe": table, "methods": setup.assembly.distributions()}
    return on_first(lambda: _open(setup, folder, table, data, resume, command)), meta


def _open(setup: TrainSetup, folder: Path, table: dict[str, Any], data: str, resume: Resume, command: str) -> Checkpoint | None:
    start = find_start(folder, table, data, resume)
    if start and not setup.recipe.run.any_versions:
        _check_versions(start, setup.assembly.distributions())
    if start and setup.recipe.data.streaming:
        _check_readers(start, setup)
    images = setup.recipe.data
    metadata = {
        "methods": setup.assembly.distributions(),
        "colours": {"channels": images.channels, "white": images.white, "mean": images.mean, "std": images.std},
        "data": {"shards": [str(p) for p in setup.shards.paths], "images": len(setup.shards), **setup.shards.metadata, "checksum": data},
    }
    sitting = {
        "command": without_queries(command),
        "folder": os.getcwd(),  # which relative paths are of
        "step": start.step if start else 0,
        "ranks": setup.ranks.world,
        "device": torch.cuda.get_device_name(setup.ranks.device) if setup.ranks.device.type == "cuda" else "cpu",
        "precision": setup.recipe.run.precision,
    }
    write_run(folder, table, metadata, sitting, fresh=start is None)
    if start:
        before, now = _split(start.meta["ranks"], start.meta["recipe"]), _split(setup.ranks.world, table)
        if before != now:
            say(f"{start.path}: was written by {before} and goes on with {now}: not to the last bit.")
    return start


def _check_versions(start: Checkpoint, now: Mapping[str, str]) -> None:
    """A method may learn something else in another version of its package; twinview's own keep what a run learns.  Raises CheckpointError."""
    for method, before in start.meta.get("methods", {}).items():
        if method in now and now[method] != before and not (before.split()[0] == now[method].split()[0] == "twinview"):
            said = f"method {method!r} came from {before} when the run began, and now comes from {now[method]}"
            raise CheckpointError(f"{start.path}: {said}. Install {before} again, or write run.any_versions=true to go on all the same.")


def _split(ranks: int, table: Mapping[str, Any]) -> str:
    """`2 ranks`, or `2 ranks x 4 micro-batches`: how a batch is split."""
    accumulation = table["run"].get("accumulation", 1)
    return f"{ranks} rank{'s' * (ranks > 1)}" + (f" x {accumulation} micro-batches" if accumulation > 1 else "")


def _check_readers(start: Checkpoint, setup: TrainSetup) -> None:
    """A stream goes on in the middle of an epoch only where each worker has the share that it had.  Raises CheckpointError."""
    saved = start.meta["recipe"]
    before = (start.meta["ranks"], max(1, saved["data"]["workers"]), saved["run"].get("accumulation", 1))
    now = (setup.ranks.world, max(1, setup.recipe.data.workers), setup.recipe.run.accumulation)
    if start.step % setup.epoch and before != now:
        said = " and ".join(f"{ranks} ranks x {workers} workers x {split} micro-batches" for ranks, workers, split in (before, now))
        ends = start.step + -start.step % setup.epoch
        raise CheckpointError(f"{start.path}: streamed by {said}: they change only between epochs (the next ends at step {ends}). Write as it was.")


def restore(setup: TrainSetup, engine: Any, start: Checkpoint) -> None:
    """What a checkpoint holds besides weights: optimizer, random states, loss scale.  Every rank calls it.  Raises CheckpointError."""
    try:
        load_whole_optimizer_state(engine, setup.optimizer, setup.trainable, start.load("optimizer.pt"))
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{start.path}: belongs to another model: optimizer.pt: {e}.") from None
    if start.meta["ranks"] == setup.ranks.world:
        set_random_states(start.load(f"rank-{setup.ranks.rank}.pt")["random"], setup.ranks.device)
    scale_of(engine).load(start.meta.get("loss_scale", {}))
    setup.model.followed = start.meta.get("followed", False)
