"""Skips steps whose gradient is not finite, and scales the loss so that fp16 can hold its gradient."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from twinview.engine.optimizer import gradient_norm

FIRST = 2.0**16  # of a run in fp16
PATIENCE = 2000  # steps without an overflow until the scale is doubled


class LossScale:
    """The scale of a run's losses: 1, or in fp16 halved at each overflow and doubled after PATIENCE steps without one (Micikevicius et al. 2018).

    DeepSpeed asks it in two ways: at stage 0 as torch's GradScaler, under stages 1-3, which measure the gradient themselves, as a loss scaler of
    its own.  Gradients are summed over ranks before they are looked at, so that all ranks find the same.
    """

    dynamic = False  # DeepSpeed must not update the scale: it would do so before unscaling the gradients

    def __init__(self, fp16: bool, trainable: list[nn.Parameter]) -> None:
        """`trainable`: what the optimizer moves."""
        self.fp16, self.trainable = fp16, trainable
        self.cur_scale = FIRST if fp16 else 1.0
        self.good = 0  # steps since the scale last changed
        self.norm = 0.0  # global, of the last step's gradient, before clipping; stage 0 alone
        self._measured = False

    # ---- as torch's GradScaler
    def scale(self, loss: Tensor) -> Tensor:
        """The loss that backward starts from."""
        return loss * self.cur_scale if self.fp16 else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Measure the gradient, and divide it by the scale."""
        self.norm, self._measured = gradient_norm(self.trainable) / self.cur_scale, True
        if self.fp16 and math.isfinite(self.norm):
            torch._foreach_mul_([p.grad for p in self.trainable if p.grad is not None], 1 / self.cur_scale)

    def step(self, optimizer: Optimizer) -> None:
        """The optimizer's step, or none.  A weight that no loss reaches has gradient 0, as on several ranks and under ZeRO: it decays."""
        if not self._measured:  # it was, where gradients are clipped
            self.unscale_(optimizer)
        if math.isfinite(self.norm):
            for parameter in self.trainable:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            optimizer.step()

    def update(self) -> None:
        """What is measured next is another step's."""
        self._measured = False

    # ---- as DeepSpeed's loss scaler
    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss that backward starts from."""
        return self.scale(loss)

    def update_scale(self, overflow: bool) -> None:
        """Nothing yet: see `stepped` and `lower`."""

    # ---- for the step
    def stepped(self) -> None:
        """After a step that was taken."""
        self.good += 1
        if self.fp16 and self.good == PATIENCE:
            self.cur_scale, self.good = self.cur_scale * 2, 0

    def lower(self) -> bool:
        """Lower the scale after a skipped step whose loss was finite; False where lowering cannot help."""
        self.good = 0
        if self.cur_scale == 1.0:
            return False
        self.cur_scale = max(1.0, self.cur_scale / 2)
        return True

    def state(self) -> dict[str, float]:
        """For a checkpoint; nothing where there is no scale."""
        return {"scale": self.cur_scale, "good": self.good} if self.fp16 else {}

    def load(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        if self.fp16 and state:
            self.cur_scale, self.good = float(state["scale"]), int(state["good"])


def install(engine: Any, scale: LossScale) -> None:
    """Have DeepSpeed ask `scale` from now on."""
    if engine.zero_optimization():
        engine.optimizer.loss_scaler = scale
    else:
        engine.torch_autocast_z0_gradscaler = scale


def scale_of(engine: Any) -> LossScale:
    """The one that was installed."""
    found: LossScale = engine.optimizer.loss_scaler if engine.zero_optimization() else engine.torch_autocast_z0_gradscaler
    return found


def measured(engine: Any) -> tuple[float, bool]:
    """Norm of the gradient that DeepSpeed has just stepped with, before clipping, and whether the step was taken: not where it is not finite."""
    norm = float(engine.get_global_grad_norm()) if engine.zero_optimization() else scale_of(engine).norm
    return norm, math.isfinite(norm)
