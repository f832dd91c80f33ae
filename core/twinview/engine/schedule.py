"""Learning rate and target momentum over a run."""
from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from twinview.machine import rank_variable
from twinview.recipe import Recipe, tables

log = logging.getLogger(__name__)


def warn_unreached(recipe: Recipe, steps: int = 0, steps_per_epoch: int = 0) -> None:
    """Say on the first rank, in a line each, what `unreached` finds."""
    if rank_variable("RANK") == 0:
        for line in unreached(recipe, steps, steps_per_epoch):
            log.warning(line)


def unreached(recipe: Recipe, steps: int = 0, steps_per_epoch: int = 0) -> Iterator[str]:
    """What a run will never come to: a peak of the learning rate, milestones, a loss that counts.

    All of it is allowed: published recipes are shortened to try them.  `steps`, `steps_per_epoch`: 0 where they are not known, as before the data
    are opened; then what needs them is not told.
    """
    schedule, run = recipe.schedule, recipe.run
    steps = run.steps or steps
    epochs = run.epochs or (steps / steps_per_epoch if steps and steps_per_epoch else 0.0)
    for key, length, unit in (("warmup_steps", steps, "steps"), ("warmup_epochs", epochs, "epochs"), ("warmup_share", 1, "as its whole")):
        rising = getattr(schedule, key)
        if rising and length and rising >= length:
            said = f"the run has {length:g} {unit}, and its learning rate never reaches the peak"
            yield f"[schedule] {key} = {rising:g}: {said}. Write less, or train longer."
    late = [f"{milestone:g}" for milestone in schedule.milestones if epochs and milestone >= epochs]
    if late:
        said = f"the run ends after {round(epochs, 2):g} epochs, and never comes to {', '.join(late)}"
        yield f"[schedule] milestones: {said}. Write smaller ones, or train longer."
    if not any(weight for use in recipe.loss for weight in use.weights):
        yield "[[loss]] weight: is 0 in every loss, and so none of them teaches the network anything. Write one above 0."


def warmup_share(recipe: Recipe, steps: int, steps_per_epoch: int) -> float:
    """The share of the run in which the learning rate rises; `steps` 0 where the run is measured in hours."""
    schedule = recipe.schedule
    if schedule.warmup_share is not None:
        return schedule.warmup_share
    if schedule.warmup_steps is None and schedule.warmup_epochs is None:
        return 0.0
    rising = schedule.warmup_steps if schedule.warmup_steps is not None else (schedule.warmup_epochs or 0.0) * steps_per_epoch
    return min(1.0, rising / steps)


def lr_factor(schedule: tables.Schedule, share: float, warmup: float, epoch: int = 0, epoch_share: float = 0.0) -> float:
    """Learning rate as a part of its peak, `share` of the run done: linear from `start` over the first `warmup` of the run, then as `schedule` says.

    `epoch`: whole epochs done; `epoch_share`: an epoch as a share of the run, 0 where the run is measured in hours.
    """
    if share < warmup:
        return schedule.start + (1 - schedule.start) * share / warmup
    if schedule.use == "constant":
        return 1.0
    if schedule.use == "multistep":
        done = max(float(epoch), share / epoch_share) if epoch_share else float(epoch)  # the whole number where a division falls just short of it
        return float(schedule.gamma ** sum(milestone <= done for milestone in schedule.milestones))
    done = min(epoch * epoch_share, 1.0) if schedule.grain == "epoch" else share
    down = max(done - warmup, 0.0) / (1 - warmup) if warmup < 1 else 0.0
    if schedule.use == "poly":
        return float(schedule.final + (1 - schedule.final) * max(1 - down, 0.0) ** schedule.power)
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * down)) / 2


def decay_at(optimizer: tables.Rates, share: float) -> float | None:
    """The recipe's weight decay, `share` of the run done: a cosine from weight_decay to weight_decay_end (DINO); None where it stays."""
    if optimizer.weight_decay_end is None:
        return None
    start, end = optimizer.weight_decay, optimizer.weight_decay_end
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def momentum_at(target: tables.Target, share: float) -> float:
    """The target's momentum: 1 - (1 - m0) (cos(pi k / K) + 1) / 2, from m0 to 1 over the run (BYOL, section 3.2), or constant."""
    if target.schedule == "constant":
        return target.momentum
    return 1 - (1 - target.momentum) * (math.cos(math.pi * share) + 1) / 2
