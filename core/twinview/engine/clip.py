"""Clipping of each parameter's gradient by itself ([optimizer] clip), under every ZeRO stage."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from twinview.engine.zero import Group, groups_of

EPS = 1e-6  # beside the norm, as torch.nn.utils.clip_grad_norm_ has it


def clip_each(engine: Any, optimizer: Optimizer, trainable: Mapping[str, nn.Parameter], most: float) -> None:
    """From now on, before each of the optimizer's steps: g <- g * min(1, most / (|g| + 1e-6)) for every parameter by itself (DINO's training)."""
    if not engine.zero_optimization():
        optimizer.register_step_pre_hook(lambda chosen, *_: _clip_whole([p for g in chosen.param_groups for p in g["params"]], most))
        return
    groups = {id(group.flat): group for group in groups_of(engine.optimizer, dict(trainable))}

    def clip(chosen: Optimizer, *_: Any) -> None:
        for flat in (p for g in chosen.param_groups for p in g["params"]):
            if flat.grad is not None:
                _clip_pieces(groups[id(flat)], flat.grad, most)

    optimizer.register_step_pre_hook(clip)


@torch.no_grad()
def _clip_whole(parameters: list[Tensor], most: float) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, list(_factors(torch.stack(torch._foreach_norm(gradients)), most)))


@torch.no_grad()
def _clip_pieces(group: Group, gradient: Tensor, most: float) -> None:
    """`gradient` [n]: this rank's piece of the group's flat gradient; every rank calls it for the same group."""
    pieces = [gradient[mine] for mine in group.mine()]
    squares = torch.stack([piece.square().sum() for piece in pieces]).to(_sender(group, gradient))
    if dist.get_world_size() > 1:
        dist.all_reduce(squares)
    for piece, factor in zip(pieces, _factors(squares.sqrt().to(gradient.device), most), strict=True):
        piece.mul_(factor)


def _factors(norms: Tensor, most: float) -> Tensor:
    return (most / (norms + EPS)).clamp(max=1.0)


def _sender(group: Group, gradient: Tensor) -> torch.device:
    """Where ranks can send from: an offloaded optimizer's gradients lie on the CPU."""
    return group.places[0][1].device if gradient.device.type == "cpu" else gradient.device
