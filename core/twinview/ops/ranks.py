"""What losses and evaluations say to the other ranks.  With one process, or no process group, each is the identity."""
from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(x: Tensor) -> Tensor:
    """Every rank's rows [n_r, ...] -> [sum of n_r, ...] in the order of the ranks; n_r may differ and be 0."""
    if not _several():
        return x
    counts = [x.new_empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, x.new_tensor([len(x)], dtype=torch.int64))
    lengths = [int(n) for n in counts]
    every = x.new_empty(sum(lengths), *x.shape[1:])
    for rank, rows in enumerate(torch.split(every, lengths)):
        if rank == dist.get_rank():
            rows.copy_(x)
        if len(rows):
            dist.broadcast(rows, rank)  # into its place: no second copy of what may be hundreds of MB
    return every


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
