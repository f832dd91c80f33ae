"""InstDist: the estimation by hand, the bank's moves, one view, two ranks against one process."""
from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview_instdist.image import Bank, Image

TOLERANCE = 1e-12


def test_the_estimation_by_hand() -> None:
    torch.manual_seed(0)
    part, bank = Image(channels=4, negatives=3, temperature=0.5), Bank(10, 4).double()
    f = F.normalize(torch.randn(2, 4, dtype=torch.float64), dim=1).requires_grad_()
    ids, drawn = torch.tensor([7, 1]), torch.tensor([[0, 1, 2], [3, 4, 0]])
    found = part.estimation(f, bank, ids, drawn)

    def likeness(image: int, view: int) -> float:
        return math.exp(float(bank.rows[image] @ f[view].detach()) / 0.5)

    z = 10 * sum(likeness(int(i), b) for b in range(2) for i in drawn[b]) / 6
    expected = 0.0
    for b in range(2):
        p = [likeness(int(i), b) / z for i in (ids[b], *drawn[b])]
        h = [x / (x + 3 / 10) for x in p]
        expected -= (math.log(h[0]) + sum(math.log(1 - x) for x in h[1:])) / 2
    assert float(bank.constant) == pytest.approx(z, rel=1e-12) and float(found.detach()) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: part.estimation(x, bank, ids, drawn), (f,))  # Z is a constant by now
    assert float(bank.constant) == pytest.approx(z, rel=1e-12)


def test_vectors_move_after_the_step_and_twice_the_same_image_counts_once() -> None:
    torch.manual_seed(0)
    bank = Bank(6, 4)
    before, seen = bank.rows.clone(), F.normalize(torch.randn(3, 4), dim=1)
    bank.hold(torch.tensor([5, 5]), seen[:2], 0)  # of a step that was left out
    bank.hold(torch.tensor([2, 4]), seen[:2], 0)
    bank.hold(torch.tensor([2]), seen[2:], 1)
    assert torch.equal(bank.rows, before)
    bank.commit(0.5)
    torch.testing.assert_close(bank.rows[2], F.normalize(0.5 * before[2] + 0.25 * (seen[0] + seen[2]), dim=0))
    torch.testing.assert_close(bank.rows[4], F.normalize(0.5 * before[4] + 0.5 * seen[1], dim=0))
    assert torch.equal(bank.rows[[0, 1, 3, 5]], before[[0, 1, 3, 5]])


def driven(net: Any) -> Any:
    torch.manual_seed(0)
    return net.Driven({"use": "instdist.image", "channels": 4, "negatives": 16}, width=[6], target={"momentum": 0.0}, images=64)


def test_more_images_than_can_be_drawn_from_are_refused(net: Any) -> None:
    run = driven(net)
    with pytest.raises(RecipeError, match="a memory bank holds up to 16777216 images"):
        run.assembly.calls.check(dims=attrs.evolve(run.model.dims, dataset_size=1 << 25), data=None)


def steps(run: Any, share: slice) -> dict[str, Tensor]:
    """Two steps with a rank's images; losses and gradients are averaged over the ranks that there are."""
    losses: list[Tensor] = []
    for i in range(2):
        images = torch.randn(2, 8, 6, 1, 1, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        step = run.step(*images[:, share])
        step.batch = step.batch._replace(ids=torch.arange(8)[share] + 8 * i, seeds=torch.arange(8)[share])
        loss = run.loss(step)
        run.optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach().clone())
        for value in (losses[-1], *run.grads().values()):
            if dist.is_initialized():
                dist.all_reduce(value)
                value /= dist.get_world_size()
        run.optimizer.step()
        run.after(step)
    return {"losses": torch.stack(losses), **run.model.state_dict()}


def on_a_rank(rank: int) -> dict[str, Tensor]:
    return steps(driven(importlib.import_module("twinview_reference")), slice(4 * rank, 4 * rank + 4))


def test_two_ranks_are_one_process(net: Any, two_ranks: Callable[[Callable[[int], Any]], list[Any]]) -> None:
    alone = steps(driven(net), slice(0, 8))
    assert not torch.equal(alone["state.instdist/image/bank.rows"][:16], driven(net).model.state_dict()["state.instdist/image/bank.rows"][:16])
    for found in two_ranks(on_a_rank):
        net.agree("two ranks", found, alone, TOLERANCE)
