"""One optimizer step: rates, forward, backward, update, target."""
from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twinview.engine.around import after_micro_batch, after_step
from twinview.engine.loss_scale import measured, scale_of
from twinview.engine.optimizer import set_rates
from twinview.engine.schedule import decay_at, lr_factor, momentum_at
from twinview.engine.setup import TrainSetup
from twinview.engine.skipped_steps import Micro, SkippedStep, leave_out
from twinview.engine.zero import forget
from twinview.errors import TwinviewError
from twinview.model import LazyStep, Outcome, Siamese
from twinview.ops.ranks import summed
from twinview.ops.spread import spread_of
from twinview.values import Batch, Progress


class StepResult(NamedTuple):
    """What a step was, on this rank."""

    values: dict[str, Tensor | float]  # loss, loss/<term>, notes, lr, momentum, grad_norm, loss_scale in fp16
    seconds: float
    waited: float  # of them, for data
    left_out: SkippedStep | None = None  # why no weight was touched, on any rank

    def numbers(self) -> dict[str, float]:
        """The values as plain numbers; on a GPU this waits for them."""
        return {name: float(value) for name, value in self.values.items()}


def take_step(built: TrainSetup, engine: Any, batches: Iterator[Batch], progress: Progress, *, watch: bool) -> StepResult:
    """Move the online branch by one optimizer step and let the target follow.

    `watch`: also work out what is only logged.  Where loss or gradient are not finite nothing moves, on no rank: not the online branch, not the
    target (one that follows before the forward pass has, and does not again at the next step); under [run] bad_steps what the forward passes wrote
    (BatchNorm statistics, queues) is undone as well.
    """
    recipe, model = built.recipe, built.model
    began, source = time.perf_counter(), _Timed(batches)
    thawed = built.frozen.begin(progress.epoch)
    if thawed and progress.step == progress.epoch * built.epoch:
        forget(engine, built.optimizer, built.trainable, thawed)
    factor = lr_factor(recipe.schedule, progress.share, built.warmup, progress.epoch, built.epoch / built.steps if built.steps else 0.0)
    lr, decay = recipe.optimizer.peak(recipe.run.batch_size), decay_at(recipe.optimizer, progress.share)
    set_rates(built.optimizer, lr, factor, decay, progress.epoch)
    momentum = momentum_at(recipe.target, progress.share) if model.target is not None else 0.0
    if recipe.target.update == "before_forward" and not model.followed:
        model.follow(momentum)
    before = _written(model) if recipe.run.bad_steps else {}
    told: dict[str, list[Tensor]] = {}
    sums: dict[str, Tensor] = {}
    micros = []
    for number in range(recipe.run.accumulation - 1):  # nothing of these is held while the next is computed
        micros.append(_accumulate(built, engine, next(source), progress._replace(micro=number), watch, told, sums)[0])
    micro, step = _accumulate(built, engine, next(source), progress._replace(micro=recipe.run.accumulation - 1), watch, told, sums)
    values: dict[str, Tensor | float] = {name: sum(value / len(each) for value in each) for name, each in told.items()}
    values |= _spreads(sums, recipe.run.batch_size)
    norm, moved = measured(engine)
    scale = scale_of(engine)
    values |= {"lr": lr * factor, "momentum": momentum, "grad_norm": norm, **({"loss_scale": scale.cur_scale} if scale.fp16 else {})}
    values |= {} if decay is None else {"weight_decay": decay}
    model.followed = not moved and recipe.target.update == "before_forward"
    if not moved:
        _undo(model, before)
        return StepResult(values, time.perf_counter() - began, source.seconds, leave_out(progress, (*micros, micro), scale))
    scale.stepped()
    if recipe.target.update == "after_step":
        model.follow(momentum)
    values |= after_step(built, engine, step, progress)
    if progress.step == 0:  # a run that goes on within an epoch does not ask for heads of before_epoch
        model.check_heads()
    return StepResult(values, time.perf_counter() - began, source.seconds)


def _spreads(sums: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """Feature spread over all images of the step, of all ranks; nothing of a single image, which has none.  Every rank calls it."""
    return {f"spread/{role}": spread_of(summed(some)) for role, some in sums.items()} if images > 1 else {}


class _Timed:
    """Batches, and how long they were waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - asked
        return batch


def _accumulate(
    built: TrainSetup, engine: Any, batch: Batch, progress: Progress, watch: bool, told: dict[str, list[Tensor]],
    sums: dict[str, Tensor],
) -> tuple[Micro, LazyStep]:
    """Forward and backward of a micro-batch; the last of a step moves the weights.  Adds what is logged to `told` and `sums`."""
    try:
        outcome: Outcome = engine(batch, progress, watch=watch)
        loss = outcome.loss.detach()
        # a loss that is not finite gets a gradient that is not, whose sum over ranks tells every rank: no flag to send, no wait for the device
        engine.backward(outcome.loss * torch.where(loss.isfinite(), 1.0, torch.nan))
    except torch.OutOfMemoryError:
        much = f"{len(batch.keys)} images at once do not fit the GPU"
        raise TwinviewError(f"step {progress.step + 1}: {much}. Write a larger run.accumulation.") from None
    step = outcome.step.settle()
    notes = outcome.notes | after_micro_batch(built, engine, step, progress)
    found: dict[str, Tensor] = {"loss": loss, **{f"loss/{k}": v for k, v in outcome.terms.items()}, **notes}
    for name, value in found.items():
        told.setdefault(name, []).append(value)  # a part may note something of some micro-batches alone
    for role, some in outcome.sums.items():
        sums[role] = sums[role] + some if role in sums else some
    engine.step()
    return Micro(batch.keys, loss, outcome.terms), step


def _written(model: Siamese) -> dict[str, Tensor]:
    """Copies of what a forward pass may write to."""
    return {name: value.detach().clone() for name, value in _state(model).items()}


def _undo(model: Siamese, before: dict[str, Tensor]) -> None:
    for name, value in _state(model).items():
        if name in before:
            value.data = before[name]


def _state(model: Siamese) -> dict[str, Tensor]:
    return {**dict(model.named_buffers()), **{f"state.{name}": p for name, p in model.state.named_parameters()}}
