"""The training batches of a run: one stream of them, or an epoch at a time where a part chooses the samples."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import BadSamples
from twinview.engine.around import sample_weights
from twinview.engine.checkpoint import Checkpoint
from twinview.engine.distributed.process import gathered
from twinview.errors import CheckpointError, PluginError
from twinview.values import Batch, DataFactory, Progress

if TYPE_CHECKING:
    from twinview.engine.setup import TrainSetup

FILE = "samples.pt"  # of a checkpoint

Choice = NDArray[Any] | None  # counts (int64) or weights (float64) of an epoch's samples; None: every sample once


class Batches(Iterator[Batch]):
    """This rank's micro-batches from a step on."""

    def __init__(self, built: TrainSetup, step: int, bad: BadSamples, choice: Choice) -> None:
        """`choice`: of the epoch in which `step` lies."""
        self._built, self._bad = built, bad
        self._end = built.steps or None  # of the run; None where it is measured in hours
        self._by_epoch = built.assembly.has("sample_weights")
        in_epoch = step % built.epoch
        if self._by_epoch and not in_epoch:
            self._batches: Any = None  # `begin_epoch` comes first
        else:
            self._batches = self._from(step, step + built.epoch - in_epoch if self._by_epoch else self._end, choice)

    def begin_epoch(self, step: int, choice: Choice) -> None:
        """The epoch that begins with `step` has these samples.  Its workers are new: those of the epoch before could not read ahead."""
        self.close()
        self._batches = self._from(step, step + self._built.epoch, choice)

    def _from(self, step: int, end: int | None, choice: Choice) -> Any:
        built = self._built
        last = min((one for one in (end, self._end) if one is not None), default=None)
        return training_batches(
            built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, start=step,
            steps=None if last is None else last - step, bad=self._bad, assembly=built.assembly, numbers=choice,
        )

    def __next__(self) -> Batch:
        found: Batch = next(self._batches)
        return found

    def close(self) -> None:
        """End the workers."""
        if self._batches is not None:
            self._batches.close()


def ask_choice(built: TrainSetup, engine: Any, data: DataFactory, progress: Progress) -> Choice:
    """What the part that chooses samples says of the coming epoch, checked.  Raises PluginError naming it, on all ranks."""
    (label,) = [name for name in built.assembly.answers("sample_weights") if name in built.assembly.parts]
    place = f"{built.assembly.uses[label][1]}: sample_weights()"
    given = sample_weights(built, engine, data, progress)
    found, fault = None, ""
    if given is not None:
        found, fault = _numbers(given, len(built.shards), built.epoch * built.recipe.run.batch_size)
    told = gathered((fault, "" if found is None else hashlib.blake2b(found.tobytes(), digest_size=8).hexdigest()))
    fault = next((one for one, _ in told if one), "")
    if not fault and len({digest for _, digest in told}) > 1:
        fault = "gives other numbers on one rank than on another. Work them out from what all ranks have (twinview.ops.ranks)"
    if fault:
        raise PluginError(f"{place} {fault}.")
    return found


def _numbers(given: Any, samples: int, wanted: int) -> tuple[Choice, str]:
    """The numbers as an array, or what is wrong with them."""
    try:
        array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    except (TypeError, ValueError):
        return None, f"gives a {type(given).__name__}. Give a number for each of the {samples} samples"
    if array.shape != (samples,):
        return None, f"gives shape {array.shape}. Give a number for each of the {samples} samples, by its id"
    if array.dtype.kind not in "iuf":
        return None, f"gives {array.dtype} numbers. Give whole numbers (counts) or fractions (weights)"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return None, "gives numbers that are not finite"
    if (array < 0).any() or not array.any():
        return None, "gives a number below 0, or 0 for every sample"
    if array.dtype.kind == "f":
        return array.astype(np.float64), ""
    if int(array.sum()) < wanted:
        return None, f"gives counts that sum to {int(array.sum())}, and an epoch takes {wanted} samples. Give larger counts, or weights (fractions)"
    return array.astype(np.int64), ""


def choice_files(choice: Choice) -> dict[str, Any]:
    """What a checkpoint keeps of the epoch's choice."""
    return {} if choice is None else {FILE: {"numbers": torch.from_numpy(choice)}}


def load_choice(start: Checkpoint | None, built: TrainSetup) -> Choice:
    """The choice of the epoch in which a checkpoint was written.  Raises CheckpointError where it is of another data set."""
    if start is None or not start.has(FILE) or not built.assembly.has("sample_weights"):
        return None
    found: NDArray[Any] = start.load(FILE)["numbers"].numpy()
    if len(found) != len(built.shards):
        raise CheckpointError(f"{start.path}: {FILE} is of {len(found)} samples, and the shards hold {len(built.shards)}.")
    return found
