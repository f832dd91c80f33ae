"""Sinkhorn-Knopp: against DINOv2's, its marginals, numbers that overflow, and two ranks."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinview.ops import sinkhorn

SLICE = Path(__file__).parents[1] / "plugins" / "fixtures" / "baselines" / "sinkhorn.pt"
TwoRanks = Callable[[Callable[[int], Any]], list[Any]]


@pytest.mark.parametrize("rounds", [1, 3])
def test_assignments_of_the_release(rounds: int) -> None:
    case = torch.load(SLICE, weights_only=True)
    found = sinkhorn(case["teacher_logits"], 0.05, rounds)
    assert float((found - case[f"sinkhorn{rounds}"]).abs().max() / case[f"sinkhorn{rounds}"].abs().max()) < 5e-7


def test_the_patches_of_the_release(shared: Path) -> None:
    case = torch.load(shared / "reference" / "baselines" / "koleo_sinkhorn.pt", weights_only=True)
    found = sinkhorn(case["patch_teacher_logits"], 0.05, 3)
    assert float((found - case["patch_sinkhorn"]).abs().max() / case["patch_sinkhorn"].abs().max()) < 5e-7


def scores(n: int = 40, k: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def test_all_clusters_hold_as_much() -> None:
    found = sinkhorn(scores() + torch.arange(8.0), 0.5, 200)
    torch.testing.assert_close(found.sum(0), torch.full((8,), 5.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(40))


def test_a_constant_changes_nothing_and_nothing_overflows() -> None:
    torch.testing.assert_close(sinkhorn(scores() + 300, 0.5), sinkhorn(scores(), 0.5), atol=1e-4, rtol=1e-3)
    assert bool(torch.isfinite(sinkhorn(100 * scores(), 0.05)).all())


def on_rank(rank: int) -> Any:
    """This rank's share of the rows, unequal ones."""
    return sinkhorn(scores()[:25] if rank == 0 else scores()[25:], 0.3)


def test_two_ranks_assign_as_one(two_ranks: TwoRanks) -> None:
    torch.testing.assert_close(torch.cat(two_ranks(on_rank)), sinkhorn(scores(), 0.3))
