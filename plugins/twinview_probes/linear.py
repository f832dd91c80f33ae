"""A linear classifier on frozen features."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops.ranks import from_first
from twinview.ops.seeding import seed_of
from twinview_probes.features import Cells


class Linear(NamedTuple):
    """x -> weight x + bias, for features as they come: their standardization is in it."""

    weight: Tensor  # [classes, C]
    bias: Tensor  # [classes]

    def maps(self, x: Tensor) -> Tensor:
        """Logits of maps: [B, C, h, w] -> [B, classes, h, w]."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def fit(cells: Cells, classes: int, *, steps: int, batch: int, lr: float, weight_decay: float, seed: int) -> Linear:
    """Fit by `steps` steps of AdamW on `batch` cells each, drawn with replacement; cross-entropy, cosine schedule to 0, start at 0.

    Features are standardized channel by channel over `cells` first, in place (a channel that never changes is left out).
    The same on every rank, and for any number of ranks up to rounding.
    """
    x, y, order = cells
    var, mean = torch.var_mean(x, 0, correction=0)
    scale = torch.where(var > 1e-12, var.rsqrt(), 0)
    x.sub_(mean).mul_(scale)
    weight, bias = (nn.Parameter(x.new_zeros(shape)) for shape in ((classes, x.shape[1]), (classes,)))
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = torch.Generator().manual_seed(seed_of(seed, "probes.fit"))
    for _ in range(steps):
        rows = order[torch.randint(len(order), (batch,), generator=draws).to(order.device)]
        with torch.enable_grad():
            loss = F.cross_entropy(F.linear(x[rows], weight, bias), y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    raw = weight.detach() * scale
    return Linear(from_first(raw), from_first(bias.detach() - raw @ mean))
