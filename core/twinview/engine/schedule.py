"""Learning rate and target momentum over a run."""
from __future__ import annotations

import math

from twinview.recipe import Recipe, tables


def warmup_share(recipe: Recipe, steps: int, steps_per_epoch: int) -> float:
    """The share of the run in which the learning rate rises; `steps` 0 where the run is measured in hours."""
    schedule = recipe.schedule
    if schedule.warmup_share is not None:
        return schedule.warmup_share
    if schedule.warmup_steps is None and schedule.warmup_epochs is None:
        return 0.0
    rising = schedule.warmup_steps if schedule.warmup_steps is not None else (schedule.warmup_epochs or 0.0) * steps_per_epoch
    return min(1.0, rising / steps)


def lr_factor(schedule: tables.Schedule, share: float, warmup: float) -> float:
    """Learning rate as a part of its peak: linear from 0 over the first `warmup` of the run, then cosine to `final`, or constant."""
    if share < warmup:
        return share / warmup
    if schedule.use == "constant":
        return 1.0
    down = (share - warmup) / (1 - warmup) if warmup < 1 else 0.0
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * down)) / 2


def momentum_at(target: tables.Target, share: float) -> float:
    """The target's momentum: 1 - (1 - m0) (cos(pi k / K) + 1) / 2, from m0 to 1 over the run (BYOL, section 3.2), or constant."""
    if target.schedule == "constant":
        return target.momentum
    return 1 - (1 - target.momentum) * (math.cos(math.pi * share) + 1) / 2
