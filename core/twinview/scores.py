"""Which way a score is better, by the measure that ends its name: `robustness/mce`, `sphere/random/alignment`."""
from __future__ import annotations

LESS = ("alignment", "uniformity", "mce", "mean_error", "loss", "error", "nll", "rmse", "mse", "ece")  # and every `error_NAME`
NEITHER = ("collapsed", "empty")


def direction(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where a score tells of neither."""
    measure = name.rpartition("/")[2]
    return 0 if measure in NEITHER else -1 if measure in LESS or measure.startswith("error_") else 1
