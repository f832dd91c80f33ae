"""The signals as functions of features."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-7  # RankMe's epsilon, added to every share
WITHIN = 1e-4  # LiDAR's delta, on the diagonal of the scatter within objects
PAIRS = 2048  # features that uniformity compares with all at once


def rankme(x: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023, equation 1): features [N, C] -> exp of the entropy of their singular values, 1 to min(N, C).

    Not centered, as published.
    """
    values = torch.linalg.svdvals(x.double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + TINY
    return float((-(shares * shares.log()).sum()).exp())


def lidar(x: Tensor) -> float:
    """LiDAR (Thilak et al., ICLR 2024, section 3): features [n, q, C] of q views of n images -> 1 to min(n - 1, C).

    The smooth rank (as RankMe's) of the linear discriminant's matrix: scatter between images, whitened by the scatter within.
    """
    x = x.double()
    n, q, channels = x.shape
    means = x.mean(1)
    apart = means - means.mean(0)
    between = apart.T @ apart / (n - 1)
    left = (x - means[:, None]).flatten(0, 1)
    within = left.T @ left / (n * (q - 1)) + WITHIN * torch.eye(channels, dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(within)
    root = vectors * values.clamp(min=WITHIN).rsqrt()
    found = torch.linalg.eigvalsh(root.T @ between @ root).clamp(min=0)
    shares = found / found.sum().clamp(min=torch.finfo(found.dtype).tiny) + TINY
    return float((-(shares * shares.log()).sum()).exp())


def alpha_req(x: Tensor, first: int, last: int) -> float:
    """alpha-ReQ (Agrawal et al., NeurIPS 2022): features [N, C] -> the alpha of eigenvalue i ~ i^-alpha, of the covariance's spectrum.

    A line through log eigenvalue over log i, least squares over i = first..last; about 1 was best in their figures, larger is steeper.
    """
    spectrum = torch.linalg.svdvals((x - x.mean(0)).double()).square() / len(x)
    last = min(last, int((spectrum > spectrum[0] * 1e-12).sum()))
    at = torch.arange(min(first, last), last + 1, dtype=torch.float64)
    if len(at) < 2:
        return math.nan
    across, up = at.log(), spectrum[at.long() - 1].log().cpu()
    across = across - across.mean()
    return float(-(across * (up - up.mean())).sum() / across.square().sum())


def alignment(x: Tensor) -> float:
    """Wang and Isola (ICML 2020): mean squared distance of unit features of two views of an image; x [n, q >= 2, C], over all pairs of views."""
    unit = F.normalize(x.double(), dim=2)
    q = x.shape[1]
    same = (q * q - unit.sum(1).square().sum(1)) * 2 / (q * (q - 1))  # sum over pairs of |a - b|^2 = q^2 - |sum|^2
    return float(same.mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Wang and Isola (ICML 2020): log of the mean of exp(-t |a - b|^2) over pairs of different unit features of [N, C]; lower is more even."""
    unit = F.normalize(x.double(), dim=1)
    total = unit.new_zeros(())
    for rows in torch.split(unit, PAIRS):
        total += (2 * t * (rows @ unit.T - 1)).exp().sum()
    n = len(unit)
    return float(((total - n) / (n * (n - 1))).log())


def occupancy(sizes: Tensor) -> tuple[float, float]:
    """Images of each cluster [k] -> entropy over log k (1: all as large, 0: one holds all), and the share of clusters that are empty."""
    shares = sizes.double() / sizes.sum()
    return float(torch.special.entr(shares).sum()) / math.log(len(sizes)), float((sizes == 0).double().mean())
