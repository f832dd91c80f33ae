"""How long a linear probe of 10 000 features of width 512 takes, beside scikit-learn's logistic regression on the same features.

    python benchmarks/probe_speed.py

Writes benchmarks/results/probe_speed.json: seconds of this process, accuracy on 2 000 other features of the same classes, and for the logistic
regressions of one decay how far their loss is above its minimum, which scikit-learn finds in float64 with a tolerance of 1e-7.  Channels are
correlated, as those of networks are: standardized, their covariance has eigenvalues from some hundredths to tens.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from machine import processor
from proof.rows import commit
from twinview_probes.regression import logistic, ridge

OUT = Path(__file__).parent / "results" / "probe_speed.json"
IMAGES, WIDTH, CLASSES = 10_000, 512, 10
DECAY = 1e-2
ROUNDS = 3  # of which the quickest counts
Answers = Callable[[Tensor], Tensor]  # features [N, C] -> [N, classes]


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in a few of the directions, under noise of falling size in all of them; channels are mixtures of the directions."""
    fixed = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, WIDTH, generator=fixed)
    mixed = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=fixed)).Q
    scale = torch.arange(1, WIDTH + 1) ** -0.5
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=draws)
    return (0.5 * means[y] + 4 * torch.randn(n, WIDTH, generator=draws)) * scale @ mixed, y


def scikit(x: Tensor, y: Tensor, decay: float, tolerance: float = 1e-4) -> Answers:
    """scikit-learn's logistic regression on standardized features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (decay * len(x)), max_iter=10_000, tol=tolerance)).fit(x.numpy(), y.numpy())
    return lambda z: torch.from_numpy(found.decision_function(z.numpy()))


def loss(answers: Answers, x: Tensor, y: Tensor, decay: float) -> float:
    """What a logistic regression makes small; its weights, of standardized features, are read off its answers, which are linear."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    middle = answers(mean[None]).double()
    weight = answers(mean + torch.diag(deviation)).double() - middle
    return float(F.cross_entropy(answers(x).double(), y) + decay / 2 * weight.square().sum())


def main() -> None:
    """Time each on the same features."""
    x, y = features(IMAGES, 1)
    other, truth = features(2000, 2)
    scikit(x[:500], y[:500], DECAY)  # imports
    least = loss(scikit(x.double(), y, DECAY, 1e-7), x.double(), y, DECAY)
    ways: dict[str, Callable[[], Any]] = {
        "scikit-learn LogisticRegression, one decay": lambda: scikit(x, y, DECAY),
        "lbfgs, the same decay": lambda: logistic(x, y, CLASSES, decays=[DECAY]),
        "lbfgs, four decays, one chosen": lambda: logistic(x, y, CLASSES),
        "ridge, ten decays, one chosen": lambda: ridge(x, y, CLASSES),
    }
    rows = []
    for name, fit in ways.items():
        cpus = []
        for _ in range(ROUNDS):
            cpu = time.process_time()
            answers = fit()
            cpus.append(time.process_time() - cpu)
        row: dict[str, Any] = {"probe": name, "cpu_seconds": round(min(cpus), 2)}
        if "decay" in name and "decays" not in name:
            row["above_the_minimum"] = float(f"{loss(answers, x, y, DECAY) - least:.2g}")
        rows.append({**row, "accuracy": round(100 * float((answers(other).argmax(1) == truth).double().mean()), 2)})
        print(rows[-1], flush=True)
    made = {"machine": processor(), "commit": commit(), "seed": 0, "threads": torch.get_num_threads(), "rounds": ROUNDS}
    OUT.write_text(json.dumps({"images": IMAGES, "width": WIDTH, "classes": CLASSES, "decay": DECAY, **made, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
