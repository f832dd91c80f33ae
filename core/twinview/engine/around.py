"""Calls the hooks around a step: what they write to parameters stays, what they note is logged."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinview.assembly.checks import naming_evaluations
from twinview.branch import Branches
from twinview.engine.compiled import uncompiled
from twinview.engine.zero import forget, gathered_weights, writable_weights
from twinview.errors import PluginError
from twinview.model import LazyStep
from twinview.ops.seeding import generator
from twinview.progress import waiting
from twinview.values import DataFactory, Progress

if TYPE_CHECKING:
    from twinview.engine.setup import TrainSetup


def before_epoch(built: TrainSetup, engine: Any, data: DataFactory, progress: Progress) -> None:
    """Ask every part's `before_epoch`, in the recipe's order."""
    assembly = built.assembly
    labels = assembly.answers("before_epoch")
    if not labels:
        return
    with writable_weights(engine, built.trainable), uncompiled(built.recipe):
        for label in labels:
            rng = generator(built.recipe.run.seed, "before_epoch", label, progress.epoch)
            branches = _with_reset(built, engine, progress)
            with naming_evaluations(assembly, label), waiting(f"{label}, before epoch {progress.epoch}"):
                assembly.only("before_epoch", label)(branches=branches, data=data, progress=progress, rng=rng)


def try_evaluations(built: TrainSetup, engine: Any, data: DataFactory) -> None:
    """What the evaluations ask before the first step, and nothing else: shards that are not there are missed before anything is trained."""
    assembly, progress = built.assembly, Progress(0, built.steps, 0, 0.0)
    with gathered_weights(engine), uncompiled(built.recipe):
        for label in assembly.answers("before_epoch"):
            if assembly.uses[label][0] == "evaluate":
                rng = generator(built.recipe.run.seed, "before_epoch", label, 0)
                with naming_evaluations(assembly, label):
                    assembly.only("before_epoch", label)(branches=built.model.branches, data=data, progress=progress, rng=rng)


def sample_weights(built: TrainSetup, engine: Any, data: DataFactory, progress: Progress) -> Any:
    """What the one part that chooses samples gives for the epoch, as it gives it."""
    rng = generator(built.recipe.run.seed, "sample_weights", progress.epoch)
    with gathered_weights(engine), uncompiled(built.recipe):
        return built.assembly.calls.sample_weights(branches=built.model.branches, data=data, progress=progress, rng=rng)


def after_micro_batch(built: TrainSetup, engine: Any, step: LazyStep, progress: Progress) -> dict[str, Tensor]:
    """Ask every part's `after_micro_batch`; what they note."""
    return _after(built, engine, "after_micro_batch", built.model.branches, step, progress)


def after_step(built: TrainSetup, engine: Any, step: LazyStep, progress: Progress) -> dict[str, Tensor]:
    """Ask every part's `after_step`; what they note."""
    return _after(built, engine, "after_step", _with_reset(built, engine, progress), step, progress)


def _after(built: TrainSetup, engine: Any, hook: str, branches: Branches, step: LazyStep, progress: Progress) -> dict[str, Tensor]:
    assembly = built.assembly
    labels = assembly.answers(hook)
    if not labels:
        return {}
    step.take_notes()
    whole = any("branches" in assembly.arguments(hook, label) for label in labels)
    precision = built.model.precision(cache=False)  # features are in it; a hook may write to weights
    with torch.no_grad(), precision, writable_weights(engine, built.trainable, whole=whole), _reached(step, branches):
        for label in labels:
            step.label = label
            assembly.only(hook, label)(branches=branches, step=step, progress=progress)
    return step.take_notes()


@contextmanager
def _reached(step: LazyStep, branches: Branches) -> Iterator[None]:
    """`step.branches` is `branches`, which can reset heads; at the end nobody is asked any more."""
    step.branches = branches
    try:
        yield
    finally:
        step.label = ""


def _with_reset(built: TrainSetup, engine: Any, progress: Progress) -> Branches:
    """The branches, with a `reset` that works."""

    def reset(part: object, head: str) -> None:
        _reset(built, engine, built.model.online.key(part, head), progress.step)

    return built.model.branches._replace(reset=reset)


@torch.no_grad()
def _reset(built: TrainSetup, engine: Any, key: str, step: int) -> None:
    """Draw a head anew, in the parameters that are whole here; the pieces that ZeRO trains follow when the hook is done (`writable_weights`)."""
    model, (own, _, name) = built.model, key.rpartition("/")
    label = next((label for label in built.assembly.parts if built.assembly.key(label) == own), "")
    if not label:
        raise PluginError(f"branches.reset: no part of the recipe is called {own!r}.")
    fresh = model.new_head(label, name, "reset", step)
    owners = [model.state, model.online.heads, *([] if model.target is None else [model.target.heads])]
    values = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    for module in (owner[key] for owner in owners if key in owner):
        for place, value in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            value.copy_(values[place])
    forget(engine, built.optimizer, built.trainable, {f"heads.{key}.{place}" for place, _ in fresh.named_parameters()} & built.trainable.keys())
