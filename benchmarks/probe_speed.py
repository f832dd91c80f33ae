"""How long a linear probe of 10 000 features of width 512 takes, beside scikit-learn's logistic regression on the same features.

    python benchmarks/probe_speed.py

Writes benchmarks/results/probe_speed.json: seconds of this process, and accuracy on 2 000 other features of the same classes.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from machine import processor
from proof.rows import commit
from twinview_probes.regression import logistic, ridge

OUT = Path(__file__).parent / "results" / "probe_speed.json"
IMAGES, WIDTH, CLASSES = 10_000, 512, 10


def features(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in a few of the directions, under noise of falling size in all of them."""
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    scale = torch.arange(1, WIDTH + 1) ** -0.5
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=draws)
    return (0.5 * means[y] + 4 * torch.randn(n, WIDTH, generator=draws)) * scale, y


def main() -> None:
    """Time each on the same features."""
    x, y = features(IMAGES, 1)
    other, truth = features(2000, 2)

    def scikit() -> Callable[[Tensor], Tensor]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        found = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1e-2 * len(x)), max_iter=1000)).fit(x.numpy(), y.numpy())
        return lambda z: torch.from_numpy(found.predict(z.numpy()))

    ways: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "scikit-learn LogisticRegression, one decay": scikit,
        "lbfgs, the same decay": lambda: (lambda fit: lambda z: fit(z).argmax(1))(logistic(x, y, CLASSES, decays=[1e-2])),
        "lbfgs, four decays, one chosen": lambda: (lambda fit: lambda z: fit(z).argmax(1))(logistic(x, y, CLASSES)),
        "ridge, ten decays, one chosen": lambda: (lambda fit: lambda z: fit(z).argmax(1))(ridge(x, y, CLASSES)),
    }
    rows = []
    for name, fit in ways.items():
        began, cpu = time.perf_counter(), time.process_time()
        predict = fit()
        seconds = {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
        rows.append({"probe": name, **seconds, "accuracy": round(100 * float((predict(other) == truth).double().mean()), 2)})
        print(rows[-1], flush=True)
    made = {"machine": processor(), "commit": commit(), "seed": 0, "threads": torch.get_num_threads()}
    OUT.write_text(json.dumps({"images": IMAGES, "width": WIDTH, "classes": CLASSES, **made, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
