"""One optimizer step: rates, forward, backward, update, target."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twinview.engine.build import Built
from twinview.engine.optimizer import gradient_norm, lr_factor, momentum_at, set_rates
from twinview.errors import TwinviewError
from twinview.step import LazyStep, Outcome
from twinview.values import Batch, Progress


class Taken(NamedTuple):
    """What a step was, on this rank."""

    values: dict[str, Tensor | float]  # loss, loss/<term>, notes, lr, momentum, grad_norm
    seconds: float
    waited: float  # of them, for data

    def numbers(self) -> dict[str, float]:
        """The values as plain numbers; on a GPU this waits for them."""
        return {name: float(value) for name, value in self.values.items()}


def take_step(built: Built, engine: Any, batches: Iterator[Batch], progress: Progress, *, watch: bool) -> Taken:
    """Move the online branch by one optimizer step and let the target follow.

    `watch`: also work out what is only logged.  Raises TwinviewError at a loss that is not finite, before it touches a weight.
    """
    recipe, model = built.recipe, built.model
    began, source = time.perf_counter(), _Timed(batches)
    factor = lr_factor(recipe.schedule, progress.share, built.warmup)
    lr = recipe.optimizer.peak(recipe.run.batch_size)
    set_rates(built.optimizer, lr, factor)
    momentum = momentum_at(recipe.target, progress.share) if model.target is not None else 0.0
    if recipe.target.update == "before_forward":
        model.follow(momentum)
    values: dict[str, Tensor | float] = {}
    for _ in range(recipe.run.accumulation - 1):  # nothing of these is held while the next is computed
        _accumulate(built, engine, next(source), progress, watch, values)
    step = _accumulate(built, engine, next(source), progress, watch, values)
    if recipe.target.update == "after_step":
        model.follow(momentum)
    built.assembly.calls.after_step(branches=model.branches, step=step, progress=progress)
    values |= {"lr": lr * factor, "momentum": momentum}
    return Taken(values, time.perf_counter() - began, source.seconds)


class _Timed:
    """Batches, and how long they were waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - asked
        return batch


def _accumulate(built: Built, engine: Any, batch: Batch, progress: Progress, watch: bool, values: dict[str, Tensor | float]) -> LazyStep:
    """Forward and backward of a micro-batch; the last of a step moves the weights.  Adds what is logged to `values`."""
    try:
        outcome: Outcome = engine(batch, progress, watch=watch)
        _check_finite(outcome, batch, progress.step + 1)
        engine.backward(outcome.loss)
    except torch.OutOfMemoryError:
        much = f"{len(batch.keys)} images at once do not fit the GPU"
        raise TwinviewError(f"step {progress.step + 1}: {much}. Write a larger run.accumulation.") from None
    found: dict[str, Tensor] = {"loss": outcome.loss.detach(), **{f"loss/{k}": v for k, v in outcome.terms.items()}, **outcome.notes}
    for name, value in found.items():
        values[name] = values.get(name, 0.0) + value / built.recipe.run.accumulation
    boundary = watch and engine.is_gradient_accumulation_boundary()
    norm = gradient_norm(built.moved.values()) if boundary and not engine.zero_optimization() else None
    engine.step()
    if boundary:
        values["grad_norm"] = norm if norm is not None else float(engine.get_global_grad_norm())  # before clipping
    return outcome.step.settle()


def _check_finite(outcome: Outcome, batch: Batch, step: int) -> None:
    loss = float(outcome.loss.detach())
    if math.isfinite(loss):
        return
    terms = ", ".join(f"{name} {float(value):g}" for name, value in outcome.terms.items())
    keys = ", ".join(batch.keys[:8]) + (f" and {len(batch.keys) - 8} more" if len(batch.keys) > 8 else "")
    raise TwinviewError(f"step {step}: the loss is {loss} ({terms}). Lower [optimizer] lr or lengthen the warm-up; the images were {keys}.")
