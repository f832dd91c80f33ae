"""A model of the small recipe and its batches, in this process: steps one at a time, states put back, and whole runs in folders."""
from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from twinview.assembly import Assembly
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import BadSamples
from twinview.engine.around import before_epoch
from twinview.engine.batches import Batches, ask_choice
from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.skipped_steps import SkippedSteps
from twinview.engine.step import StepResult, take_step
from twinview.engine.train import train
from twinview.engine.zero import plain_linear
from twinview.model import LazyStep, Outcome, Siamese
from twinview.recipe import Recipe
from twinview.testing.images import workplace
from twinview.testing.subject import Subject
from twinview.values import Batch, Progress

_numbers = itertools.count()


def new_folder(name: str) -> Path:
    """A place for a run, which is not there yet."""
    return workplace() / f"{name}-{next(_numbers)}"


class Rehearsal:
    """The steps of a run, taken one at a time by the engine that trains."""

    def __init__(self, subject: Subject, **run: Any) -> None:
        """Raises TwinviewError as a training would before its first step."""
        self.setup: TrainSetup = build(subject.recipe(**run))
        self.folder = new_folder("rehearsal")
        with plain_linear():
            self.engine = wrap(self.setup, self.folder)
        setup = self.setup
        self.data = Factory(setup.recipe, setup.dims, setup.shards, 0, 1, setup.model.features, setup.model.alignment)
        setup.model.stores.keep_in(self.folder / "samples", set)
        self.step, self.model, self.assembly = 0, setup.model, setup.assembly

        self._watch()

    def _watch(self) -> None:
        """Note which parameters a gradient reaches that is not 0."""
        self.reached: set[str] = set()

        def see(name: str, gradient: Tensor) -> None:
            if name not in self.reached and bool(torch.count_nonzero(gradient)):
                self.reached.add(name)

        for name, parameter in self.setup.trainable.items():
            cast(Any, parameter).register_hook(functools.partial(see, name))

    def steps(self) -> Iterator[StepResult]:
        """Every step of the run, each taken when it is asked for."""
        setup = self.setup
        with closing(Batches(setup, 0, BadSamples(0), None)) as batches:
            while self.step < setup.steps:
                progress, chooses = self.progress(), setup.assembly.has("sample_weights")
                if self.step % setup.epoch == 0:
                    before_epoch(setup, self.engine, self.data, progress)
                    if chooses:
                        batches.begin_epoch(self.step, ask_choice(setup, self.engine, self.data, progress))
                taken = take_step(setup, self.engine, chain([next(batches)], batches), progress, watch=True)
                if taken.left_out:
                    SkippedSteps(allowed=0).add(taken.left_out)
                self.step += 1
                yield taken

    def progress(self) -> Progress:
        """As hooks see it."""
        return Progress(self.step, self.setup.steps, self.step // self.setup.epoch, self.step / self.setup.steps)


class Still:
    """A model that is not trained: what its losses give for a batch, and its state, which can be put back."""

    def __init__(self, subject: Subject, **run: Any) -> None:
        """The rehearsal's model at its start, after the hooks before the first epoch."""
        self.rehearsal = rehearsal = Rehearsal(subject, **run)
        self.name = subject.name
        self.model: Siamese = rehearsal.model
        self.assembly: Assembly = rehearsal.assembly
        self.setup = rehearsal.setup
        self.data = rehearsal.data
        before_epoch(rehearsal.setup, rehearsal.engine, rehearsal.data, rehearsal.progress())
        self._start = {name: value.clone() for name, value in self.model.state_dict().items()}

    def batches(self, count: int) -> list[Batch]:
        """The first of the run."""
        setup = self.setup
        loading = training_batches(setup.recipe, setup.dims, setup.shards, rank=0, world=1, steps=count, assembly=setup.assembly)
        with closing(loading) as loaded:
            return list(loaded)

    def forward(self, batch: Batch, micro: int = 0, *, seed: int = 0, grad: bool = False) -> Outcome:
        """All losses of a batch, in train mode; the global generators start at `seed`."""
        seed_all(seed)
        progress = Progress(0, self.setup.steps, 0, 0.0, micro)
        with torch.set_grad_enabled(grad):
            return self.model.train()(batch, progress, watch=True)  # type: ignore[no-any-return]

    def asks_target(self, batch: Batch) -> bool:
        """Whether the part's own loss asks for the target's features of a view, or for a module of the target branch, or runs one."""
        step, target, ran = self.step(batch), self.model.branches.target, list[str]()
        step.label = self.name
        target.asked.clear()
        handles = [module.register_forward_pre_hook(lambda *_: ran.append("")) for module in target.modules()]
        try:
            with torch.no_grad(), self.model.train().precision():
                self.assembly.only("loss", step.label)(step=step)
        finally:
            for handle in handles:
                handle.remove()
            self.restore()
        return bool(ran or target.asked) or any(step.made(view, "target") for view in range(len(batch.images)))

    def after_micro_batch(self, outcome: Outcome, micro: int) -> None:
        """The hooks behind a micro-batch."""
        step = outcome.step.settle()
        for label in self.assembly.answers("after_micro_batch"):
            with torch.no_grad(), self.model.precision(cache=False):
                self.assembly.only("after_micro_batch", label)(
                    branches=self.model.branches, step=step, progress=Progress(0, self.setup.steps, 0, 0.0, micro)
                )

    def step(self, batch: Batch) -> LazyStep:
        """What a batch offers, without gradient and with nothing asked for yet."""
        return LazyStep(self.model, batch, Progress(0, self.setup.steps, 0, 0.0), False)

    def restore(self) -> None:
        """The state as it was at the start, without what modules keep outside of their tensors."""
        with torch.no_grad():
            self.model.load_state_dict(self._start)


def seed_all(seed: int) -> None:
    """The global generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def terms(outcome: Outcome) -> dict[str, float]:
    """The terms of a forward pass as plain numbers."""
    return {name: float(value) for name, value in outcome.terms.items()}


def whole_run(recipe: Recipe, folder: Path, *, resume: bool = False) -> list[dict[str, float]]:
    """Train in a folder, quietly; the rows of its metrics."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train(recipe, folder, resume=resume, command="twinview.testing")
    return rows_of(folder)


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights_of(folder: Path, step: int) -> Mapping[str, Tensor]:
    """The tensors of a run's checkpoint."""
    found: Mapping[str, Tensor] = torch.load(folder / "checkpoints" / f"step-{step:06d}" / "model.pt", weights_only=True)
    return found


@contextlib.contextmanager
def imported_anew(package: str) -> Iterator[None]:
    """A package as a new process would import it: what its modules hold is gone, and comes back afterwards."""
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    for name in own:
        del sys.modules[name]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(own)
