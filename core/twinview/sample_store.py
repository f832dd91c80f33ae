"""Arrays of bytes for each sample, too large for every checkpoint (pseudo labels): a file for each epoch, in the run's folder."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from twinview.errors import CheckpointError, PluginError
from twinview.ops.ranks import rank, world


class SampleArray:
    """A uint8 array [samples, ...]; where the run has a folder, a file that all ranks share."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self._values = values

    def read(self, rows: Tensor) -> Tensor:
        """[B, ...] uint8 of `rows` [B], on the CPU; 0 where nothing was written.  Raises PluginError for a row that there is not."""
        return torch.from_numpy(self._values[self._checked(rows)])

    def write(self, rows: Tensor, values: Tensor) -> None:
        """Keep `values` [B, ...] uint8 of `rows` [B].  Raises PluginError for a row that there is not."""
        self._values[self._checked(rows)] = values.cpu().numpy()

    def _checked(self, rows: Tensor) -> NDArray[np.int64]:
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self._values):
            said = f"holds a row for each of {len(self._values)} samples, and is asked for row {int(rows.max())}"
            instead = 'Number rows by batch.places; by batch.ids where Traits(needs=frozenset({"ids"})) says that they number the samples'
            raise PluginError(f"branches.samples: {said}. {instead}.")
        return rows.cpu().numpy()

    def done(self) -> None:
        """All ranks call it when they have written: what one wrote, all read, after a kill too."""
        if isinstance(self._values, np.memmap):
            self._values.flush()
        _wait()


class SampleStores:
    """The arrays of a run's parts, by head key and epoch."""

    def __init__(self, samples: int) -> None:
        """`samples` of the data set.  Without a folder (`keep_in`) they lie in memory."""
        self.samples = samples
        self.folder: Path | None = None
        self._needed: Callable[[], set[int]] = set
        self._open: dict[tuple[str, int], SampleArray] = {}

    def keep_in(self, folder: Path, needed: Callable[[], set[int]]) -> None:
        """Keep them in files from now on.  `needed`: the epochs in which checkpoints stand; files of other epochs that are over are dropped."""
        self.folder, self._needed = folder, needed

    def new(self, key: str, epoch: int, shape: Sequence[int]) -> SampleArray:
        """A new array for an epoch, of `shape` for each sample, all 0.  Every rank calls it."""
        size = (self.samples, *shape)
        self._open = {k: v for k, v in self._open.items() if k[0] != key}
        if self.folder is None:
            found = SampleArray(np.zeros(size, np.uint8))
        else:
            path = self._path(key, epoch)
            if rank() == 0:
                self._drop_old(path)
                made = np.lib.format.open_memmap(path.with_suffix(".tmp"), mode="w+", dtype=np.uint8, shape=size)
                made.flush()
                del made
                os.replace(path.with_suffix(".tmp"), path)
            _wait()
            found = SampleArray(np.load(path, mmap_mode="r+"))
        self._open[key, epoch] = found
        return found

    def get(self, key: str, epoch: int) -> SampleArray:
        """The array of an epoch; a run that goes on finds its file again.  Raises CheckpointError where there is none."""
        if (key, epoch) not in self._open:
            path = self._path(key, epoch) if self.folder is not None else None
            try:
                if path is None:
                    raise FileNotFoundError
                self._open[key, epoch] = SampleArray(np.load(path, mmap_mode="r+"))
            except (OSError, ValueError):
                where = f"{path}: is missing or damaged" if path else f"{key}: holds nothing of epoch {epoch}"
                raise CheckpointError(f"{where}: what epoch {epoch} began with. Go on from a checkpoint of another epoch, or train anew.") from None
        return self._open[key, epoch]

    def _path(self, key: str, epoch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{key.replace('/', '.')}-epoch-{epoch:06d}.npy"

    def _drop_old(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        start, _, now = path.stem.rpartition("-epoch-")
        needed = self._needed()
        for old in path.parent.glob("*.npy") if needed else ():
            found = re.fullmatch(re.escape(start) + r"-epoch-(\d{6,})\.npy", old.name)
            if found and int(found[1]) < int(now) and int(found[1]) not in needed:
                old.unlink(missing_ok=True)


def _wait() -> None:
    if world() > 1:
        dist.barrier()
