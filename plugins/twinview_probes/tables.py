"""Linear probes as the papers' tables have them: the layer's start, its optimizer, its rates."""
from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from twinview.ops.heads import LinearClassifier
from twinview.ops.lars import LARS
from twinview.ops.ranks import from_first
from twinview.ops.seeding import seed_of, seeded

START = 0.01  # deviation of the layer's weights in all of them


@attrs.frozen(kw_only=True)
class Table:
    """The settings of one paper's linear probe."""

    batch: int
    epochs: int
    lr: float  # the peak, of 256 images where `scaled`
    scaled: bool = True  # with batch / 256
    norm: bool = False  # BatchNorm without affine in front (eps 1e-6, momentum 0.1)
    lars: str = ""  # "matrices": trust ratio on the weights alone; "all": on the bias too (LARC); "": SGD
    warmup: int = 0  # epochs, from 0
    each_step: bool = False  # the cosine moves with every step; else with every epoch
    milestones: tuple[int, ...] = ()  # epochs after which the rate is a tenth; then there is no cosine

    def peak(self, batch: int) -> float:
        """The rate at the top, for batches of this size."""
        return self.lr * batch / 256 if self.scaled else self.lr

    def lasting(self, epochs: int) -> Table:
        """The same over another number of epochs: milestones keep their share of it, the warm-up takes at most half."""
        milestones = tuple(max(1, round(m * epochs / self.epochs)) for m in self.milestones)
        return attrs.evolve(self, epochs=epochs, warmup=min(self.warmup, epochs // 2), milestones=milestones)

    def share(self, epoch: float) -> float:
        """Of the peak, `epoch` epochs after the start."""
        if epoch < self.warmup:
            return epoch / self.warmup
        at = epoch if self.each_step else math.floor(epoch)
        if self.milestones:
            return float(0.1 ** sum(at >= m for m in self.milestones))
        return (1 + math.cos(math.pi * (at - self.warmup) / (self.epochs - self.warmup))) / 2


TABLES: Mapping[str, Table] = {
    "mae": Table(batch=16384, epochs=90, lr=0.1, norm=True, lars="matrices", warmup=10, each_step=True),  # He et al. 2022, SiameseIM
    "moco": Table(batch=256, epochs=100, lr=30.0, scaled=False, milestones=(60, 80)),  # He et al. 2020, DenseCL
    "simsiam": Table(batch=4096, epochs=90, lr=0.1, lars="all"),  # Chen and He 2021: SGD inside LARC
    "moco_v3": Table(batch=1024, epochs=90, lr=3.0),  # Chen, Xie and He 2021, for vision transformers; ResNet-50 has lr = 0.1
    "dino": Table(batch=1024, epochs=100, lr=0.001),  # Caron et al. 2021, iBOT
}


class Probe(LinearClassifier):
    """Features [B, C] -> logits [B, classes], started at N(0, 0.01) and bias 0."""

    def __init__(self, channels: int, classes: int, norm: bool) -> None:
        super().__init__(channels, classes, "batch" if norm else "none", START)


def optimizer(table: Table, probe: Probe, lr: float) -> Optimizer:
    """Momentum 0.9, no decay.  LARS: trust 0.001, and the bias by plain momentum at the full rate unless the table says otherwise."""
    if not table.lars:
        return SGD(probe.parameters(), lr=lr, momentum=0.9)
    groups = [{"params": [p], "adapt": p.ndim > 1 or table.lars == "all", "weight_decay": 0.0} for p in probe.parameters()]
    return LARS(groups, lr, momentum=0.9, trust=0.001, eps=1e-8 if table.lars == "all" else 0.0, nesterov=False, lr_inside=False)


def train(table: Table, x: Tensor, y: Tensor, classes: int, *, epochs: int, batch: int, lr: float, seed: int) -> Probe:
    """The probe after all epochs, in eval mode, on features [N, C]; batches of a permutation an epoch, the last incomplete one left out.

    `batch` 0: the table's, at most N; `lr` 0: the table's for that batch; `epochs` 0: the table's.  The same on every rank.
    """
    table = table.lasting(epochs or table.epochs)
    batch = min(batch or table.batch, len(x))
    with seeded(seed, "probes.linear"):
        probe = Probe(x.shape[1], classes, table.norm).to(x.device)
    peak, steps = lr or table.peak(batch), max(1, len(x) // batch)
    moves = optimizer(table, probe, peak)
    draws = torch.Generator().manual_seed(seed_of(seed, "probes.epochs"))
    for epoch in range(table.epochs):
        order = torch.randperm(len(x), generator=draws).to(x.device)
        for step in range(steps):
            for group in moves.param_groups:
                group["lr"] = peak * table.share(epoch + step / steps)
            rows = order[step * batch : (step + 1) * batch]
            with torch.enable_grad():
                loss = F.cross_entropy(probe(x[rows]), y[rows])
            moves.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            moves.step()
    for value in probe.state_dict().values():
        from_first(value)
    return probe.eval()
