"""Checkpoints: a folder for each, complete or not there at all, tensors by name, read back without pickles.

    checkpoints/latest              the name of the newest
    checkpoints/best                the one with the best score, under [run] keep_best
    checkpoints/step-000500/        model.pt       name -> tensor: online, target, state, buffers too (rank 0's)
                                    optimizer.pt   parameter name -> momenta, moments, counts
                                    rank-K.pt      what each rank has of its own: BatchNorm statistics, random states
                                    samples.pt     how often the epoch has each sample, where a part says so (`sample_weights`)
                                    meta.json      step, epoch, elapsed, ranks, data, recipe, a checksum of each file
"""
from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from twinview.engine.distributed.process import gathered, on_first
from twinview.engine.zero import whole_state
from twinview.errors import CheckpointError
from twinview.faults import full, is_full
from twinview.files import write_text
from twinview.recipe.tables import FORMAT
from twinview.saved import check_finite, checksum, read_meta, why_unread
from twinview.terminal import say

Rest = Mapping[str, Any]
T = TypeVar("T")


@attrs.frozen
class Checkpoint:
    """A complete checkpoint, its files found whole."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that it has behind it."""
        return int(self.meta["step"])

    def has(self, name: str) -> bool:
        """Whether it has a file."""
        return name in self.meta["files"]

    def load(self, name: str) -> Any:
        """One of its files, on the CPU."""
        return _load(self.path / name)


# ---- writing
def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
    *,
    keep: int,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint into `folder`; every rank calls it.  A kill at any moment leaves the one before whole.

    `optimizer`: state by parameter name, on rank 0; `meta`: `step` and what else to remember; `keep`: how many to leave, the newest and the best;
    `more`: other files by name, as rank 0 has them.
    """
    rank = torch.distributed.get_rank()
    name = f"step-{meta['step']:06d}"
    fresh, final = folder / f".{name}.tmp", folder / name
    on_first(lambda: _saving(fresh, lambda: _begin(fresh)))
    device = next(model.parameters()).device
    files: dict[str, Any] = {f"rank-{rank}.pt": {"buffers": _own_buffers(model), "random": random_states(device)}}
    weights = whole_state(model)
    if rank == 0:
        files |= {"model.pt": weights, "optimizer.pt": _to_cpu(optimizer), **(more or {})}
    try:
        mine: Any = _saving(fresh, lambda: {file: _write(fresh / file, content) for file, content in files.items()})
    except CheckpointError as e:
        mine = e
    everyone = gathered(mine)  # also says that all ranks' files are on disk
    fault = next((one for one in everyone if isinstance(one, CheckpointError)), None)

    def finish() -> None:
        whole = {"format": FORMAT, **meta, "ranks": len(everyone), "files": {k: v for one in everyone for k, v in one.items()}}
        write_text(fresh / "meta.json", json.dumps(whole, indent=1), sync=True)
        _fsync(fresh)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(fresh, final)
        write_text(folder / "latest", name, sync=True)
        _fsync(folder)

    if fault is None:
        on_first(lambda: _saving(fresh, finish))
    else:
        on_first(lambda: shutil.rmtree(fresh, ignore_errors=True))
        raise fault
    if rank == 0:
        best = best_of(folder)
        older = [step for step in steps_in(folder) if step < meta["step"] and not (best and step == best[0])]
        for step in older[: max(0, len(older) - (keep - 1))]:
            shutil.rmtree(folder / f"step-{step:06d}", ignore_errors=True)
    return final


def _begin(fresh: Path) -> None:
    for left in (fresh, *fresh.parent.glob(".step-*.tmp")):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)


def _saving(fresh: Path, work: Callable[[], T]) -> T:
    """What `work` gives.  Raises CheckpointError where it finds no room, or may not write; what it has written is removed."""
    try:
        return work()
    except (OSError, RuntimeError) as e:
        if not (is_full(e) or isinstance(e, OSError)):
            raise
        shutil.rmtree(fresh, ignore_errors=True)
        if is_full(e):
            raise full(e, str(fresh.parent)) from None
        why = getattr(e, "strerror", None) or e
        raise CheckpointError(f"{fresh.parent}: a checkpoint cannot be written: {why}. The checkpoints before it are whole.") from None


def mark_best(folder: Path, step: int, score: float, name: str = "") -> None:
    """Say that the checkpoint of `step` is the best so far: `keep` will not count it, nor drop it."""
    write_text(folder / "best", json.dumps({"checkpoint": f"step-{step:06d}", "step": step, "score": score, "name": name}) + "\n", sync=True)


def best_of(folder: Path, name: str = "") -> tuple[int, float] | None:
    """The step of the best checkpoint, where one was marked and is still there, and its score."""
    try:
        said = json.loads((folder / "best").read_text(encoding="utf-8"))
        step, score = int(said["step"]), float(said["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if name and said.get("name") and said["name"] != name:
        return None
    return (step, score) if (folder / f"step-{step:06d}").is_dir() else None


def _own_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers of the branches (BatchNorm statistics differ from rank to rank); `state` is the same everywhere and in model.pt."""
    kept = model.state_dict().keys()
    return {k: v.detach().cpu() for k, v in model.named_buffers() if k in kept and not k.startswith("state.")}


def _to_cpu(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in values.items()} for name, values in state.items()}


def _write(path: Path, content: Any) -> int:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    return checksum(path)


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- finding
def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    found = (re.fullmatch(r"step-(\d{6,})", p.name) for p in folder.glob("step-*"))
    return sorted(int(m[1]) for m in found if m)


def find_checkpoint(folder: Path, step: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run's `checkpoints` folder, or that of `step`.  Raises CheckpointError.

    Where the newest is damaged, the one before it is taken, and a line on stderr says so.
    """
    there = steps_in(folder)
    if not there:
        raise CheckpointError(f"{folder}: holds no checkpoint. Start the run without resume=True, or name another folder with run=DIR.")
    if step is not None:
        if step not in there:
            raise CheckpointError(f"{folder}: holds no checkpoint of step {step}. There is: {', '.join(map(str, there))}.")
        return read_checkpoint(folder / f"step-{step:06d}")
    first = _latest(folder)
    newest = [n for n in reversed(there) if first is None or n <= first] or there[::-1]
    faults = []
    for n in ([first] if first is not None and first not in there else []) + newest:
        try:
            found = read_checkpoint(folder / f"step-{n:06d}")
        except CheckpointError as e:
            faults.append(str(e))
            continue
        for fault in faults:
            say(f"{fault} Going on from step {found.step} instead.")
        return found
    raise CheckpointError(faults[0])


def _latest(folder: Path) -> int | None:
    path = folder / "latest"
    named = re.fullmatch(r"step-(\d+)\s*", path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return int(named[1]) if named else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint's files.  Raises CheckpointError where one is missing, damaged or not ours."""
    return Checkpoint(path, read_meta(path))


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises whatever its zip and unpickler raise
        raise CheckpointError(f"{path}: {why_unread(e)}.") from None


# ---- reading
def load_model(checkpoint: Checkpoint, model: nn.Module, rank: int, world: int) -> None:
    """Weights and buffers into `model`, a rank's own buffers too where the number of ranks is the same.  Raises CheckpointError."""
    weights = checkpoint.load("model.pt")
    check_finite(weights, model, str(checkpoint.path))
    if world == checkpoint.meta["ranks"]:
        weights.update(checkpoint.load(f"rank-{rank}.pt")["buffers"])
    have = model.state_dict()
    if weights.keys() != have.keys():
        name = min(weights.keys() ^ have.keys())
        said = "lacks" if name in have else "has besides"
        raise CheckpointError(f"{checkpoint.path}: belongs to another model: it {said} {name!r}.")
    for name, value in weights.items():
        if value.shape != have[name].shape:
            raise CheckpointError(f"{checkpoint.path}: belongs to another model: {name!r} is {tuple(value.shape)}, not {tuple(have[name].shape)}.")
    model.load_state_dict(weights)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all random generators of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest)}
    return {**states, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_random_states(states: Rest, device: torch.device) -> None:
    """The inverse of `random_states`; a GPU's state is left where there is none."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
