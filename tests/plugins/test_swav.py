"""SwAV's views and loss, against the equations worked out once more."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops import Queue, sinkhorn
from twinview.values import Features, Progress
from twinview_swav import MultiCrop, Prototypes

PAIRS = ((1, 0), (2, 0), (0, 1), (2, 1))


def step(hand_step: Any, part: Prototypes, alone: bool = True, epoch: int = 0) -> tuple[Any, list[Tensor], dict[str, nn.Module]]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pooled = [torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    heads: dict[str, nn.Module] = {"projector": nn.Linear(5, 4).double(), "prototypes": nn.Linear(4, 7, bias=False).double()}
    averaged: dict[str, nn.Module] = heads if alone else {"projector": nn.Linear(5, 4).double(), "prototypes": nn.Linear(4, 7, bias=False).double()}
    if part.queue:
        heads |= {f"queue{view}": Queue(part.queue, 4).double() for view in (0, 1)}
    made = hand_step([Features(pooled=p) for p in pooled], [Features(pooled=p.detach()) for p in pooled[:2]], heads, averaged, PAIRS, progress=Progress(0, 10, epoch, 0.0))
    if alone:
        made.branches.target = made.branches.online
    return made, pooled, averaged


@pytest.mark.parametrize("alone", [True, False])
def test_the_loss_is_that_of_the_equations(hand_step: Any, alone: bool) -> None:
    part = Prototypes(channels=4, prototypes=7)
    made, pooled, averaged = step(hand_step, part, alone)
    found = part.loss(made)["prototypes"]
    heads = made.branches.online.heads

    def cosines(modules: dict[str, nn.Module], rows: Tensor) -> Tensor:
        weight = modules["prototypes"].weight
        assert isinstance(weight, Tensor)
        return F.normalize(modules["projector"](rows), dim=1) @ F.normalize(weight, dim=1).mT

    codes = [sinkhorn(cosines(averaged, pooled[view].detach()).detach(), 0.05) for view in (0, 1)]
    expected = torch.stack([-(codes[j] * (cosines(heads, pooled[i]) / 0.1).log_softmax(1)).sum(1).mean() for i, j in PAIRS]).mean()
    assert abs(float(found.detach() - expected.detach())) < 1e-12
    grads = [torch.autograd.grad(loss, pooled[2], retain_graph=True)[0] for loss in (found, expected)]
    assert float((grads[0] - grads[1]).abs().max()) < 1e-12
    assert 0 < float(made.notes["prototypes/used"]) <= 1


def test_earlier_projections_join_the_assignment_when_it_is_time(hand_step: Any) -> None:
    part = Prototypes(channels=4, prototypes=7, queue=12, queue_start=2)
    losses = []
    for epoch in (0, 2):
        made, _, _ = step(hand_step, part, epoch=epoch)
        losses.append(float(part.loss(made)["prototypes"].detach()))
        before = made.branches.online.of(part, "queue0").negatives()
        part.after_step(made.branches, made)
        after = made.branches.online.of(part, "queue0").negatives()
        assert torch.equal(before[6:], after[6:]) and not torch.equal(before[:6], after[:6])
    plain = float(Prototypes(channels=4, prototypes=7).loss(step(hand_step, Prototypes(channels=4, prototypes=7))[0])["prototypes"].detach())
    assert losses[0] == plain != losses[1]


def test_views() -> None:
    geometry = MultiCrop().sample_views((300, 400), np.random.default_rng(0))
    assert geometry.sizes == ((224, 224),) * 2 + ((96, 96),) * 6 and geometry.boxes.shape == (8, 4) and len(geometry.pairs) == 14
    assert {target for _, target in geometry.pairs} == {0, 1} and all(i != j for i, j in geometry.pairs)
    areas = (geometry.boxes[:, 2:] - geometry.boxes[:, :2]).prod(1)
    assert float(areas[2:].max()) < 0.15 and MultiCrop(local=0, size=64).sample_views((80, 80), np.random.default_rng(0)).pairs == ((1, 0), (0, 1))
