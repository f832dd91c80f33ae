"""Probes of frozen features, none with anything to tune: weighted nearest neighbors, and a logistic regression by L-BFGS whose decay dev chooses."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1.0, 1e-1, 1e-2, 1e-3)  # of the probe's weights; every row has the same choice


class Fit(NamedTuple):
    """A linear classifier, and the decay that dev chose for it."""

    weight: Tensor  # [C, classes]
    bias: Tensor
    mean: Tensor
    scale: Tensor
    decay: float

    def __call__(self, x: Tensor) -> Tensor:
        """Features [N, C] -> classes [N]."""
        return _classes((x - self.mean) * self.scale, self.weight, self.bias)


def knn(bank: Tensor, labels: Tensor, x: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """Classes [N] of features [N, C] by the k nearest in cosine, each voting with exp(cosine / temperature)."""
    bank, votes = F.normalize(bank, dim=1), []
    for rows in torch.split(F.normalize(x, dim=1), 1000):
        near, places = (rows @ bank.T).topk(min(k, len(bank)))
        weight = ((near - near[:, :1]) / temperature).exp()
        votes.append(weight.new_zeros(len(rows), int(labels.max()) + 1).scatter_add_(1, labels[places], weight).argmax(1))
    return torch.cat(votes)


def linear(x: Tensor, y: Tensor, dev_x: Tensor, dev_y: Tensor, *, decays: Sequence[float] = DECAYS, iterations: int = 60) -> Fit:
    """min CE + decay / 2 |W|^2 on standardized features, for each decay from the last one's solution; the best on dev.  Same result every time."""
    var, mean = torch.var_mean(x, 0, correction=0)
    scale = torch.where(var > 1e-12, var.rsqrt(), 0)
    x, dev_x = (x - mean) * scale, (dev_x - mean) * scale
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    found: list[tuple[float, Fit]] = []
    for decay in decays:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe", tolerance_change=1e-7)

        def closure(optimizer: torch.optim.LBFGS = optimizer, decay: float = decay) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(torch.addmm(bias, x, weight), y) + decay / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type, no-untyped-call, unused-ignore]
        with torch.no_grad():
            right = float((_classes(dev_x, weight, bias) == dev_y).double().mean())
        found.append((right, Fit(weight.detach().clone(), bias.detach().clone(), mean, scale, decay)))
    return max(found, key=lambda pair: pair[0])[1]


def confusions(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [N, classes, classes] of each image: rows are the truth; labels beyond the classes are left out.  Maps [N, h, w]."""
    counts = torch.zeros(len(truth), classes, classes, dtype=torch.int64)
    for i in range(len(truth)):
        known = truth[i] < classes
        counts[i] = torch.bincount(truth[i][known] * classes + predicted[i][known], minlength=classes**2).view(classes, classes)
    return counts


def miou(counts: Tensor) -> Tensor:
    """Mean over the classes of intersection over union, percent: [..., classes, classes] -> [...]; a class that never occurs is left out."""
    both = counts.diagonal(dim1=-2, dim2=-1).double()
    union = counts.sum(-1) + counts.sum(-2) - both
    return 100 * (both / union.clamp(min=1)).sum(-1) / (union > 0).sum(-1)


def _classes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight).argmax(1)
