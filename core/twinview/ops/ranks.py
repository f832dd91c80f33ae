"""What losses and evaluations say to the other ranks.  With one process, or no process group, each is the identity."""
from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """Rows of all ranks, and which of them are this rank's."""

    rows: Tensor  # [sum of n_r, ...] in the order of the ranks
    first: int  # the number of this rank's first row


def gather_rows(x: Tensor) -> Tensor:
    """Every rank's rows [n_r, ...] -> [sum of n_r, ...] in the order of the ranks; n_r may differ and be 0.

    Gradient passes: the rows of a rank get the sum, over the ranks, of what each rank's loss says of them.  With gradients averaged over ranks, as in
    training, that is the gradient of the mean of the ranks' losses (SimCLR).  Rows that want a gradient must do so on every rank, and every rank must
    run the backward pass; for keys that take none, give `x.detach()`, which costs nothing backward.
    """
    return gather_with_place(x).rows


def gather_with_place(x: Tensor) -> Gathered:
    """`gather_rows`, and where this rank's own rows begin: row i of `x` is row `first + i` of what all gave."""
    if not _several():
        return Gathered(x, 0)
    counts = [x.new_empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, x.new_tensor([len(x)], dtype=torch.int64))
    lengths = [int(n) for n in counts]
    first = sum(lengths[: dist.get_rank()])
    if torch.is_grad_enabled() and x.requires_grad:
        return Gathered(cast(Tensor, _Gather.apply(x, lengths)), first)
    return Gathered(_gather(x.detach(), lengths), first)


def _gather(x: Tensor, lengths: list[int]) -> Tensor:
    every = x.new_empty(sum(lengths), *x.shape[1:])
    for rank, rows in enumerate(torch.split(every, lengths)):
        if rank == dist.get_rank():
            rows.copy_(x)
        if len(rows):
            dist.broadcast(rows, rank)  # into its place: no second copy of what may be hundreds of MB
    return every


class _Gather(torch.autograd.Function):
    """x [n_r, ...] and every rank's number of rows -> [sum of n_r, ...]; backward: the sum over ranks, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        return _gather(x, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].clone(memory_format=torch.contiguous_format)  # the sum is made in place
        dist.all_reduce(whole)
        return torch.split(whole, ctx.lengths)[dist.get_rank()], None


def summed(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, in place."""
    if _several():
        dist.all_reduce(x)
    return x


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over ranks, in place; no gradient passes."""
    return summed(x).div_(dist.get_world_size()) if _several() else x


def from_first(x: Tensor) -> Tensor:
    """Rank 0's `x`, in place."""
    if _several():
        dist.broadcast(x, 0)
    return x


def rank() -> int:
    """This process among the ranks; 0 where it is alone."""
    return dist.get_rank() if _several() else 0


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many ranks there are; 1 where this process is alone."""
    return dist.get_world_size() if _several() else 1
