"""BatchNorm, and a run, over two ranks: what test_ranks.py asks for."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import gathered
from twinview.engine.train import train
from twinview.ops.sync_batchnorm import SyncBatchNorm, synchronize_batchnorm
from twinview.recipe import from_table


def norms() -> dict[str, nn.Module]:
    """A map, vectors, without affine parameters, and with a running mean over all batches."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "map": nn.BatchNorm2d(5),
        "vector": nn.BatchNorm1d(5),
        "plain": nn.BatchNorm1d(5, affine=False),
        "cumulative": nn.BatchNorm1d(5, momentum=None),
        "bf16": nn.BatchNorm2d(5),
    }
    for norm in made.values():
        for p in norm.parameters():
            nn.init.normal_(p)
    return made


def batch(name: str) -> Tensor:
    """Of both ranks; far from 0, where sums of squares would lose their digits."""
    shape = (7, 5, 3, 2) if name in ("map", "bf16") else (7, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1 + 30
    return x.bfloat16() if name == "bf16" else x


def through(norm: nn.Module, x: Tensor, rows: slice) -> dict[str, Tensor]:
    """The output of a second training step, its gradients and the statistics after it; `rows` of the whole batch are here."""
    x = x[rows].clone().requires_grad_()
    norm(x.detach() * 0.9)
    y = norm(x)
    whole = torch.arange(7 * math.prod(y.shape[1:]), dtype=torch.float32).view(7, *y.shape[1:])
    (y.float() * whole.sin()[rows]).sum().backward()
    found = {"y": y.detach(), "x": x.grad, **{k: p.grad for k, p in norm.named_parameters()}, **dict(norm.named_buffers())}
    return {k: v.clone() for k, v in found.items() if v is not None}


def over_ranks() -> dict[str, Any]:
    """Rank 0 holds four images, rank 1 three, or all seven and none: the pieces of what one process would have."""
    out: dict[str, Any] = {}
    cases = {name: (name, slice(0, 4), slice(4, 7)) for name in norms()} | {"all on one rank": ("vector", slice(0, 7), slice(7, 7))}
    for case, (name, *shares) in cases.items():
        norm = synchronize_batchnorm(nn.Sequential(norms()[name]))[0]  # type: ignore[index]
        assert isinstance(norm, SyncBatchNorm)
        one, other = gathered(through(norm, batch(name), shares[dist.get_rank()]))
        joined = {k: torch.cat([one[k], other[k]]) if k in ("y", "x") else one[k] + other[k] for k in one if k in ("y", "x", "weight", "bias")}
        out[case] = {**joined, **{k: v for k, v in one.items() if k not in joined}}
        assert all(torch.equal(one[k], other[k]) for k in one if "running" in k)
        kept = {k: v.clone() for k, v in norm.named_buffers()}
        assert norm(batch(name)[:0]).shape == batch(name)[:0].shape and all(torch.equal(v, kept[k]) for k, v in norm.named_buffers()), "no cell anywhere"
        x = batch(name)
        assert torch.equal(norm.eval()(x), nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return out


def on_two_ranks() -> dict[str, Any]:
    """BatchNorm over both ranks beside BatchNorm over the whole batch in one process."""
    alone = {name: through(norm, batch(name), slice(0, 7)) for name, norm in norms().items()}
    return {"ranks": launch(2, over_ranks), "alone": alone | {"all on one rank": alone["vector"]}}


def train_on_two(table: dict[str, Any], folder: Path) -> None:
    """A run on two ranks."""
    launch(2, lambda: train(from_table(table), folder).step)
