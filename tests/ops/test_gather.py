"""Rows of all ranks, with and without gradient: two ranks against one process."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twinview.ops import gather_rows
from twinview.ops.ranks import gather_with_place

TwoRanks = Callable[[Callable[[int], Any]], list[Any]]
COUNTS = [3, 2]


def whole() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weights(rank: int) -> Tensor:
    """Each rank's loss looks at all rows in its own way."""
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1 + rank), dtype=torch.float64)


def on_a_rank(rank: int) -> dict[str, Any]:
    x = torch.split(whole(), COUNTS)[rank].clone().requires_grad_()
    found = gather_with_place(2 * x)
    (found.rows.square() * weights(rank)).sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        silent = gather_rows(x)
    empty = gather_rows(x[:0] if rank == 0 else x)
    return {"rows": found.rows.detach(), "first": found.first, "grad": x.grad, "silent": silent, "plain": silent.requires_grad, "empty": empty.detach()}


def test_rows_of_all_ranks_and_the_gradient_of_the_sum_of_their_losses(two_ranks: TwoRanks) -> None:
    found = two_ranks(on_a_rank)
    x = whole().requires_grad_()
    sum(((2 * x).square() * weights(rank)).sum() for rank in (0, 1)).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    for rank, (share, gradient) in enumerate(zip(torch.split(whole(), COUNTS), torch.split(x.grad, COUNTS), strict=True)):
        assert torch.equal(found[rank]["rows"], 2 * whole()) and torch.equal(found[rank]["silent"], whole()) and not found[rank]["plain"]
        assert torch.equal(found[rank]["rows"][found[rank]["first"] :][: len(share)], 2 * share)
        torch.testing.assert_close(found[rank]["grad"], gradient, rtol=1e-13, atol=1e-13)
        assert torch.equal(found[rank]["empty"], whole()[3:])


def test_one_process_gets_its_own_rows_back() -> None:
    x = whole().requires_grad_()
    assert gather_rows(x) is x and gather_with_place(x).first == 0
