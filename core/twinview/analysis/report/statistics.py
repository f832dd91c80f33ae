"""What a table of scores may claim: means and deviations over seeds, and differences paired by seed."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Scores = Mapping[int, float]  # by seed


class Difference(NamedTuple):
    """One row above another, over the seeds that both have."""

    mean: float
    deviation: float  # of the paired differences; nan for one seed
    low: float  # 95 % interval of the mean, Student's t over seeds
    high: float
    seeds: int

    @property
    def deviations(self) -> float:
        """The mean in deviations of the differences."""
        return self.mean / self.deviation if self.deviation > 0 else float("nan")

    @property
    def verdict(self) -> str:
        """Whether it is more than chance, in words."""
        if self.seeds < 2:
            return "one seed tells nothing of chance"
        if self.low > 0 or self.high < 0:
            return "more than chance" if self.seeds > 2 else "more than chance, by two seeds alone"
        return "may be chance"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; nan for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def paired(a: Scores, b: Scores | float) -> Difference:
    """`a` minus `b` by seed, or minus one number (raw pixels know no seed).  Raises ValueError where no seed is in both."""
    from scipy.stats import t

    seeds = sorted(a) if isinstance(b, float | int) else sorted(set(a) & set(b))
    if not seeds:
        raise ValueError("no seed was run for both rows")
    gains = [a[s] - (b if isinstance(b, float | int) else b[s]) for s in seeds]
    mean, spread = statistics.fmean(gains), deviation(gains)
    reach = float(t.ppf(0.975, len(gains) - 1)) * spread / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return Difference(mean, spread, mean - reach, mean + reach, len(gains))
