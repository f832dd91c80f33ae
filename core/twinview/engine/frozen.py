"""Parameters that wait for an epoch before they are trained (`ParamRule.frozen_until`)."""
from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Frozen:
    """Their gradients are 0 until their epoch comes; then the optimizer starts on them afresh.

    Gradients are zeroed where autograd hands them over, before any rank sees another's: a frozen parameter counts in no norm, under every stage.
    The rate and the decay of their groups are 0 meanwhile (`optimizer.set_rates`), and what the optimizer counted is forgotten when they end.
    """

    def __init__(self, optimizer: Optimizer, trainable: dict[str, nn.Parameter]) -> None:
        """`optimizer`: as `make_optimizer` made it, before DeepSpeed puts flat tensors into its groups; `trainable`: its parameters by name."""
        self.epoch = 0
        self._names: dict[int, list[str]] = {}
        until = {id(p): group["frozen_until"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in trainable.items():
            epochs, hooked = until[id(parameter)], cast(Any, parameter)
            if epochs:
                self._names.setdefault(epochs, []).append(name)
                hooked.register_hook(partial(self.pass_on, epochs))

    def begin(self, epoch: int) -> list[str]:
        """Before a step of this epoch: the names of parameters whose first epoch it is."""
        self.epoch = epoch
        return self._names.get(epoch, [])

    def pass_on(self, epochs: int, gradient: Tensor) -> Tensor:
        """The gradient, or zeros."""
        return torch.zeros_like(gradient) if self.epoch < epochs else gradient
