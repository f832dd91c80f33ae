"""A batch comes out of a worker as it went in, whatever its size, and takes few shared tensors."""
from __future__ import annotations

import torch

from twinview.data.loading.transfer import SMALL, pack, unpack
from twinview.errors import DataError
from twinview.values import Batch, Geometry


def test_a_batch_comes_out_as_it_went_in() -> None:
    geometry = Geometry(torch.rand(4, 2, 4), torch.rand(4, 2) < 0.5, torch.tensor([[3, 4]] * 4), ((2, 2),) * 2, ((0, 1),), {"iou": torch.rand(4)})
    images = (torch.arange(SMALL + 1).to(torch.uint8), torch.zeros(4, dtype=torch.uint8))
    batch = Batch(("a",) * 4, torch.arange(4), torch.arange(4), 3, images, geometry, (None, torch.zeros(4, 9, dtype=torch.bool)))
    parcel = pack((batch, ()))
    assert len(parcel.tensors) == 1 and parcel.tensors[0] is images[0]
    found, bad = unpack(parcel)
    assert bad == () and found.keys == batch.keys and found.epoch == 3 and found.images[0] is images[0] and found.augment is None
    assert torch.equal(found.images[1], images[1]) and found.hidden[0] is None and found.hidden[1].shape == (4, 9)
    assert torch.equal(found.geometry.boxes, geometry.boxes) and torch.equal(found.geometry.flips, geometry.flips) and found.geometry.pairs == ((0, 1),)
    assert torch.equal(found.geometry.notes["iou"], geometry.notes["iou"]) and found.ids.dtype == torch.int64


def test_small_tensors_may_be_strided_scalar_or_empty_and_are_writable() -> None:
    for tensor in (torch.rand(3, 5).T, torch.tensor(2.5), torch.empty(0, 3), torch.tensor(True)):
        found = unpack(pack(tensor))
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
        found.zero_()


def test_an_error_comes_out_as_it_was_raised() -> None:
    found = unpack(pack(DataError("x.tar: is empty.")))
    assert type(found) is DataError and str(found) == "x.tar: is empty."
