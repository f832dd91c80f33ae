"""LARS (You, Gitman and Ginsburg 2017) as BYOL, MoCo-v3, PixPro and SimCLR released it."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Momentum over gradients that are brought, layer by layer, to `trust` of the norm of their weights.

    g <- g + decay * w;  g <- g * trust * |w| / (|g| + eps), in groups with `adapt` and where neither norm is 0;  then momentum as torch.optim.SGD.
    `lr_inside` (SimCLR): the buffer sums lr * g, and the weights move by the buffer; it differs while the learning rate changes.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, *, momentum: float, trust: float, eps: float, nesterov: bool, lr_inside: bool
    ) -> None:
        """`groups`: each with `adapt`, and with `weight_decay`."""
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "eps": eps, "nesterov": nesterov, "lr_inside": lr_inside}
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Any) -> float: ...
    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(parameters, [p.grad for p in parameters], group)
        return loss

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["adapt"]:
            gradients = list(torch._foreach_mul(gradients, self._ratios(parameters, gradients, group)))
        rate, momentum = group["lr"], group["momentum"]
        if group["lr_inside"]:
            gradients, rate = list(torch._foreach_mul(gradients, rate)), 1.0
        if momentum:
            gradients = self._with_momentum(parameters, gradients, momentum, group["nesterov"])
        torch._foreach_add_(parameters, gradients, alpha=-rate)

    @staticmethod
    def _ratios(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Of each parameter a scalar: |w| * trust / |g|, 1 where either is 0."""
        norms = zip(torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True)
        return [torch.where((w > 0) & (g > 0), group["trust"] * w / (g + group["eps"]), 1.0) for w, g in norms]

    def _with_momentum(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float, nesterov: bool) -> list[Tensor]:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum)) if nesterov else buffers
