"""What a table may claim: means and deviations over seeds, differences paired by seed, intervals, and how many seeds a difference needs."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import nct, t

from twinview.analysis.report.statistics import Difference as Difference
from twinview.analysis.report.statistics import Scores as Scores
from twinview.analysis.report.statistics import deviation as deviation
from twinview.analysis.report.statistics import paired as paired


def seeds_needed(deviation: float, difference: float = 1.0, *, power: float = 0.8, level: float = 0.05, most: int = 10_000) -> int:
    """The fewest paired seeds by which a t-test sees a true `difference` with that power, if paired differences have that deviation."""
    for n in range(2, most):
        bound = t.ppf(1 - level / 2, n - 1)
        shift = difference * n**0.5 / deviation
        if 1 - nct.cdf(bound, n - 1, shift) >= power:
            return n
    return most


def bootstrap(gains: NDArray[np.float64], blocks: Sequence[Sequence[int]], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over seeds and images: both are drawn anew, images in whole blocks.

    `gains` [seeds, images]: each seed's difference on each image (right or wrong: 1, 0, -1).
    """
    rng, means = np.random.default_rng(seed), np.empty(draws)
    sums = np.stack([gains[:, list(block)].sum(1) for block in blocks], 1)  # [seeds, blocks]
    sizes = np.array([len(block) for block in blocks])
    for i in range(draws):
        chosen = rng.integers(len(blocks), size=len(blocks))
        means[i] = sums[rng.integers(len(gains), size=len(gains))][:, chosen].sum() / (len(gains) * sizes[chosen].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_miou(a: NDArray[np.int64], b: NDArray[np.int64], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a difference in mIoU (percent), the mean over seeds: seeds and blocks of neighboring frames are drawn anew.

    `a`, `b` [seeds, blocks, classes, classes]: confusion counts of the same seeds and blocks (one seed for a row without any).
    """
    rng, gains = np.random.default_rng(seed), np.empty(draws)
    seeds = max(len(a), len(b))
    for i in range(draws):
        blocks, drawn = rng.integers(a.shape[1], size=a.shape[1]), rng.integers(seeds, size=seeds)
        scores = [_miou(counts[drawn % len(counts)][:, blocks].sum(1)).mean() for counts in (a, b)]
        gains[i] = scores[0] - scores[1]
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def _miou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    both = counts.diagonal(axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(-1) + counts.sum(-2) - both
    scores: NDArray[np.float64] = 100 * (both / np.maximum(union, 1)).sum(-1) / np.maximum((union > 0).sum(-1), 1)
    return scores
