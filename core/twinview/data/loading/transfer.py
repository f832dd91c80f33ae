"""How a worker sends a batch: large tensors through shared memory, as torch does with each; the many small ones by value, all at once.

A tensor in shared memory costs a file descriptor and about 0.2 ms of the training process; a batch has tens of small ones.
Memory is taken while the batch is packed: torch would take it in a thread of its own, where a full /dev/shm loses the batch without a word.
"""
from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twinview.errors import DataError

SMALL = 1 << 16  # bytes
SHARED = "/dev/shm"
SHORT = {  # words of the system, as torch passes them on -> what to do
    "No space left on device": f"{SHARED} is full, and batches pass through it. Give the container more (docker run --shm-size=8g)",
    "Too many open files": "too many open files: each batch on its way holds some. Raise the limit (ulimit -n)",
    "items of ancdata": "too many open files: each batch on its way holds some. Raise the limit (ulimit -n)",
    "Cannot allocate memory": "there is no memory left for a batch. Write fewer workers",
}


class PackedBatch(NamedTuple):
    """Anything that pickles, its large tensors apart."""

    rest: bytes
    tensors: tuple[Tensor, ...]


def pack(value: Any) -> PackedBatch:
    """Pack a batch for sending.  Raises DataError where shared memory does not hold it."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    try:
        return PackedBatch(file.getvalue(), tuple(tensor.share_memory_() for tensor in packer.large))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as e:
        if fault := out_of_memory(e):
            raise fault from None
        raise


def out_of_memory(error: Exception) -> DataError | None:
    """What to say where an error means that a batch found no room; None of any other."""
    found = next((remedy for words, remedy in SHORT.items() if words in str(error)), None)
    return DataError(f"[data] workers: {found}, or write data.workers=0.") if found else None


def unpack(parcel: PackedBatch) -> Any:
    """What was packed."""
    return _Unpacker(parcel).load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.large: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor) or value.nbytes <= SMALL:
            return None
        self.large.append(value)
        return len(self.large) - 1

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: PackedBatch) -> None:
        super().__init__(io.BytesIO(parcel.rest))
        self.tensors = parcel.tensors

    def persistent_load(self, place: int) -> Tensor:
        return self.tensors[place]
