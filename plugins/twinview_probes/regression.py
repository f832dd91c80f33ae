"""Linear classifiers that need no tuning: logistic regression by L-BFGS, and least squares in closed form.  Seconds, and the same every time."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.ranks import from_first
from twinview.ops.seeding import seed_of

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)  # of the logistic regression, the largest first: each starts from the one before
HELD = 5  # one image in so many is held out to choose the decay
ROWS_OF_WIDTH = 4  # features that the curvature is estimated from, for each channel
RIDGE = tuple(10.0**power for power in range(-6, 4))  # of the mean square of standardized features


class Scale(NamedTuple):
    """Standardisation of features, channel by channel; a channel that never changes is left out."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        return (x - self.mean) * self.scale


def scale_of(x: Tensor) -> Scale:
    """Mean 0 and variance 1 over rows [N, C]."""
    var, mean = torch.var_mean(x, 0, correction=0)
    return Scale(mean, torch.where(var > 1e-12, var.rsqrt(), 0))


class Affine(NamedTuple):
    """A linear classifier on features as they come, and the decay that was chosen for it."""

    weight: Tensor  # [C, classes]
    bias: Tensor
    decay: float

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C] -> [B, classes]."""
        return torch.addmm(self.bias, x, self.weight)


def logistic(x: Tensor, y: Tensor, classes: int, *, decays: Sequence[float] = DECAYS, seed: int = 0, iterations: int = 100) -> Affine:
    """min cross-entropy + decay / 2 |W|^2 on standardized features [N, C]; the decay by a fifth that is held out, then fitted on all.

    A single decay is taken as it is.  The same on every rank.
    """
    scale, chosen = scale_of(x), decays[0]
    held = torch.rand(len(x), generator=torch.Generator().manual_seed(seed_of(seed, "probes.held"))).argsort()[: len(x) // HELD]
    if len(decays) > 1 and len(held):
        rest = torch.ones(len(x), dtype=torch.bool)
        rest[held] = False
        fit, truth, best = scale(x[held.to(x.device)]), y[held.to(y.device)], -1.0
        start: Tensor | None = None
        for decay in sorted(decays, reverse=True):
            start = _minimum(scale(x[rest.to(x.device)]), y[rest.to(y.device)], classes, decay, start, iterations)
            right = float((torch.addmm(start[-1], fit, start[:-1]).argmax(1) == truth).double().mean())
            if right > best:
                best, chosen = right, decay
    found = _minimum(scale(x), y, classes, chosen, None, 2 * iterations)
    return _raw(found, scale, chosen)


def ridge(x: Tensor, y: Tensor, classes: int, *, decays: Sequence[float] = RIDGE) -> Affine:
    """Least squares of one-hot classes on standardized features [N, C]; the decay by leave-one-out, which has a closed form (Allen 1974).

    One eigendecomposition of [C, C] serves all decays; float64.  Memory: N x C x 8 bytes three times.
    """
    scale = scale_of(x)
    z, target = scale(x).double(), F.one_hot(y, classes).double()
    means = target.mean(0)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    turned = z @ vectors
    known = turned.T @ (target - means) / len(z)
    best, found = torch.inf, (decays[0], known)
    for decay in decays:
        shrunk = known / (values.clamp(min=0) + decay)[:, None]
        lever = (turned.square() / (values.clamp(min=0) + decay)).sum(1) / len(z) + 1 / len(z)
        left = (target - means - turned @ shrunk) / (1 - lever).clamp(min=1e-9)[:, None]
        error = float(left.square().mean())
        if error < best:
            best, found = error, (decay, shrunk)
    weight = (vectors @ found[1]).float()
    return _raw(torch.cat([weight, means.float()[None]]), scale, found[0])


class Whitening(NamedTuple):
    """New coordinates in which the loss is about as curved in every direction, so that L-BFGS takes few iterations; the minimum is the same.

    At weights of 0 the curvature is covariance / classes + decay; W = `out` V, with out out^T its inverse.  Features of networks span several
    orders of magnitude of it.
    """

    out: Tensor  # [C, C]: V -> W
    back: Tensor  # its inverse
    bias: float  # of the bias, whose curvature is 1 / classes

    def weights(self, v: Tensor) -> Tensor:
        """[C + 1, classes] -> the same, the bias in the last row."""
        return torch.cat([self.out @ v[:-1], self.bias * v[-1:]])

    def coordinates(self, w: Tensor) -> Tensor:
        """The inverse of `weights`."""
        return torch.cat([self.back @ w[:-1], w[-1:] / self.bias])


def whitening(z: Tensor, classes: int, decay: float) -> Whitening:
    """Of standardized features [N, C], from the first 4 C of them: it decides on the pace, not on the result."""
    some = z[: ROWS_OF_WIDTH * z.shape[1]]
    curved = (some.T @ some).double() / (len(some) * classes)
    curved.diagonal().add_(max(decay, 1e-6))
    back = torch.linalg.cholesky(curved).T
    out = torch.linalg.solve_triangular(back, torch.eye(len(back), dtype=back.dtype, device=back.device), upper=True)
    return Whitening(out.to(z.dtype), back.to(z.dtype), classes**0.5)


def _minimum(z: Tensor, y: Tensor, classes: int, decay: float, start: Tensor | None, iterations: int) -> Tensor:
    """[C + 1, classes]: weights and, as the last row, the bias."""
    white = whitening(z, classes, decay)
    moved = torch.zeros(z.shape[1] + 1, classes, device=z.device) if start is None else white.coordinates(start)
    moved.requires_grad_(True)
    solver = torch.optim.LBFGS([moved], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=1e-9, tolerance_grad=1e-6)

    def closure() -> Tensor:
        solver.zero_grad()
        both = white.weights(moved)
        each = F.cross_entropy(torch.addmm(both[-1], z, both[:-1]), y, reduction="none")
        loss = each.double().mean() + decay / 2 * both[:-1].square().sum().double()  # in float32 its last steps would be rounded away
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[arg-type, no-untyped-call, unused-ignore]
    return white.weights(moved.detach())


def _raw(both: Tensor, scale: Scale, decay: float) -> Affine:
    """For features that are not standardized."""
    weight = both[:-1] * scale.scale[:, None]
    return Affine(from_first(weight), from_first(both[-1] - scale.mean @ weight), decay)
