from __future__ import annotations

import math

import pytest
import torch

from twinview.ops.confusion import Confusion
from twinview.values import PlainBatch
from twinview_probes.features import Cells, Pixels, first, middles, sample_cells
from twinview_probes.linear import fit


def test_scores_by_hand() -> None:
    confusion = Confusion(4)
    confusion.add(torch.tensor([[0, 0, 0], [1, 1, 3]]), torch.tensor([[0, 0, 1], [1, 0, 1]]))
    # class 0: 2 hit of 3 true + 3 given - 2; class 1: 1 of 2 + 3 - 1; class 2: nowhere; class 3: 0 of 1
    assert confusion.iou()[[0, 1, 3]].tolist() == pytest.approx([2 / 4, 1 / 4, 0])
    assert math.isnan(confusion.iou()[2])
    assert confusion.miou() == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert confusion.accuracy() == pytest.approx(3 / 6)
    confusion.add(torch.tensor([2]), torch.tensor([2]))
    assert confusion.miou() == pytest.approx((2 / 4 + 1 / 4 + 1 + 0) / 4)
    assert math.isnan(Confusion(3).miou()) and math.isnan(Confusion(3).accuracy())


def test_the_label_of_a_cell_is_at_its_middle() -> None:
    labels = torch.arange(6 * 10).view(1, 6, 10)
    assert middles(labels, (2, 2)).tolist() == [[[12, 17], [42, 47]]]
    assert middles(labels, (6, 10)).equal(labels)
    assert middles(labels, (4, 3))[0, :, 0].tolist() == [1, 21, 31, 51]  # rows at 0.75, 2.25, 3.75, 5.25, column at 1.67


def test_pixels_of_a_cell_and_of_one_over_the_border() -> None:
    images = torch.randn(2, 3, 5, 8)
    maps = Pixels(4, 3)(images)
    assert maps.shape == (2, 48, 2, 2)
    assert maps[1, :, 0, 1].view(3, 4, 4).equal(images[1, :, :4, 4:])
    assert maps[1, :, 1, 0].view(3, 4, 4).equal(images[1, :, 4:5, :4].expand(3, 4, 4))


class Places:
    """Each cell's feature is its image and its place."""

    channels = 2

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        place = torch.arange(12.0).view(3, 4).expand(len(images), 1, 3, 4)
        return torch.cat([images[:, :1, :1, :1].expand(-1, 1, 3, 4), place], 1)


def batches(size: int) -> list[PlainBatch]:
    ids, labels = torch.arange(5), torch.arange(12).view(3, 4).repeat(5, 1, 1) % 4
    labels[3] = 3
    images = ids.view(5, 1, 1, 1).expand(5, 3, 3, 4).float()
    cut = [slice(i, i + size) for i in range(0, 5, size)]
    return [PlainBatch(tuple("abcde"[c]), ids[c], images[c], {"map": labels[c]}) for c in cut]


def distinct(rows: torch.Tensor) -> int:
    return len({tuple(row) for row in rows.tolist()})


def test_a_sample_has_each_labelled_cell_once_and_its_own_label() -> None:
    every = sample_cells(Places(), batches(2), cells=99, ignore=torch.tensor([3]), seed=0)
    assert len(every.y) == 4 * 9 and distinct(every.x) == 36  # the fourth image has no label but 3
    assert torch.equal(every.x[:, 1].long() % 4, every.y) and 3 not in every.y
    some = sample_cells(Places(), batches(2), cells=2, ignore=torch.tensor([3]), seed=0)
    assert some.x[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 4, 4] and distinct(some.x) == 8
    assert distinct(some.x[:, 1:]) > 2  # not the same places in every image
    again = sample_cells(Places(), batches(5), cells=2, ignore=torch.tensor([3]), seed=0)
    assert torch.equal(again.x, some.x)
    other = sample_cells(Places(), batches(5), cells=2, ignore=torch.tensor([3]), seed=1)
    assert not torch.equal(other.x, some.x)


@pytest.mark.parametrize("images", [0, 1, 3, 4, 9])
def test_the_first_images(images: int) -> None:
    wanted = list(range(min(images or 5, 5)))
    found = list(first(batches(2), images))
    assert [int(i) for b in found for i in b.ids] == wanted
    assert all(len(b.keys) == len(b.images) == len(b.labels["map"]) == len(b.ids) > 0 for b in found)


def test_the_fit_is_that_of_standardised_features() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 3), torch.randint(3, (200,))
    x[:, 2] = 7.0  # never changes
    stretched = x * torch.tensor([1e-3, 50.0, 1.0]) + torch.tensor([5.0, -100.0, 0.0])
    settings = {"steps": 30, "batch": 50, "lr": 0.05, "weight_decay": 0.01, "seed": 0}
    plain, raw = (fit(Cells(v.clone(), y, torch.arange(200)), 3, **settings) for v in (x, stretched))  # type: ignore[arg-type]
    logits = x @ plain.weight.T + plain.bias
    torch.testing.assert_close(stretched @ raw.weight.T + raw.bias, logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plain.maps(x.T.view(1, 3, 10, 20)), logits.T.view(1, 3, 10, 20))
    assert not plain.weight[:, 2].any()


def test_rows_from_several_ranks_are_taken_in_the_order_of_the_images() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    order = torch.randperm(40)
    settings = {"steps": 10, "batch": 8, "lr": 0.1, "weight_decay": 0.0, "seed": 3}
    straight = fit(Cells(x[order], y[order], torch.arange(40)), 2, **settings)  # type: ignore[arg-type]
    shuffled = fit(Cells(x.clone(), y, order), 2, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(shuffled.weight, straight.weight)
