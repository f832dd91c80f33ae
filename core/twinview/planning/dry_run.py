"""A dry run: a few real steps on this machine, to measure time and memory; nothing is written."""
from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from torch import nn

from twinview.assembly import Assembly
from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.engine.around import try_evaluations
from twinview.engine.deepspeed_config import MONITORS, check_recipe, micro_batch
from twinview.engine.distributed.process import peak_memory
from twinview.engine.schedule import warn_unreached
from twinview.engine.setup import build, wrap
from twinview.engine.skipped_steps import SkippedSteps
from twinview.engine.step import take_step
from twinview.engine.zero import plain_linear
from twinview.recipe import Recipe
from twinview.values import Progress

STEPS = 4  # the first pays for what is made once, and is not timed


@attrs.frozen(kw_only=True)
class Report:
    """A recipe on this machine."""

    device: str
    precision: str
    ranks: int
    micro_batch: int  # images that a rank holds at once
    images: int  # in the shards
    steps_per_epoch: int
    steps: int  # of the run; where it is measured in hours, what fits into them
    parameters: int  # of the online branch
    trained: int  # of them, those that the optimizer moves
    memory: int  # bytes, peak: of the GPU, or of this process
    seconds: float  # a step, with the batch in memory
    images_per_second: float
    data_seconds: float  # until the first batch was there
    hours: float  # of the whole run at this pace
    loss: float
    terms: dict[str, float]
    data: Mapping[str, Any]  # the sources that [data] mixes, and how many samples are held out

    def items(self) -> Iterator[tuple[str, str]]:
        """What to print: names and values with their units."""
        yield "device", f"{self.device}, {self.precision}, {self.ranks} rank{'s' * (self.ranks > 1)}"
        yield "images", f"{self.images}, {self.steps_per_epoch} steps an epoch, {self.micro_batch} on a rank at once"
        for source in self.data.get("sources", ()):
            yield "source", f"{source['name']}: {source['used']} of {source['samples']} images, {source['share']:.1%} of an epoch"
        if self.data.get("held_out"):
            yield "held out", f"{self.data['held_out']} images"
        yield "parameters", f"{self.parameters / 1e6:.2f} M online, {self.trained / 1e6:.2f} M of them trained"
        yield "memory", f"{self.memory / 2**30:.2f} GiB at most"
        yield "step", f"{self.seconds:.3f} s, {self.images_per_second:.0f} images/s; the first batch took {self.data_seconds:.1f} s to load"
        long = f"{self.hours:.1f} h" if self.hours >= 1 else f"{self.hours * 60:.0f} min"
        yield "run", f"{self.steps} steps, {long} at this pace"
        yield "loss", f"{self.loss:.4f} ({', '.join(f'{name} {value:.4f}' for name, value in self.terms.items())})"


def dry_run(recipe: Recipe, assembly: Assembly | None = None) -> Report:
    """Load one real batch and train a few steps on it.  Raises TwinviewError as `train` would; every rank calls it.

    `assembly`: the recipe's parts, where they are made already.
    """
    check_recipe(recipe)
    silent = attrs.evolve(recipe, deepspeed={k: v for k, v in recipe.deepspeed.items() if k not in MONITORS})
    built = build(silent, assembly=assembly)
    warn_unreached(built.recipe, built.steps, built.epoch)
    run = built.recipe.run
    progress = Progress(0, built.steps, 0, 0.0)
    asked = time.perf_counter()
    ranks = built.ranks
    loading = training_batches(
        built.recipe, built.dims, built.shards, rank=ranks.rank, world=ranks.world, steps=1, assembly=built.assembly
    )
    with closing(loading) as loaded:
        batch = list(loaded)
    data_seconds = time.perf_counter() - asked
    left_out = SkippedSteps(allowed=0)
    with plain_linear():
        engine = wrap(built, Path())
        try_evaluations(built, engine, Factory(built.recipe, built.dims, built.shards, ranks.rank, ranks.world))
        taken, clock = [], [time.perf_counter()]
        for i in range(STEPS):
            taken.append(take_step(built, engine, iter(batch), progress, watch=i == 0))
            if out := taken[-1].left_out:
                left_out.add(out)
            if built.ranks.device.type == "cuda":
                torch.cuda.synchronize()  # the backward pass is still under way
            clock.append(time.perf_counter())
    seconds = median(after - before for before, after in pairwise(clock[1:]))
    steps = built.steps or round(3600 * (run.hours or 0) / seconds)
    values = taken[0].numbers()
    return Report(
        device=str(built.ranks.device),
        precision=run.precision,
        ranks=built.ranks.world,
        micro_batch=micro_batch(built.recipe, built.ranks.world),
        images=len(built.shards),
        steps_per_epoch=built.epoch,
        steps=steps,
        parameters=_count(built.model.online),
        trained=sum(p.numel() for p in built.trainable.values()),
        memory=peak_memory(built.ranks.device),
        seconds=seconds,
        images_per_second=run.batch_size / seconds,
        data_seconds=data_seconds,
        hours=steps * seconds / 3600,
        loss=values["loss"],
        terms={k.removeprefix("loss/"): v for k, v in values.items() if k.startswith("loss/")},
        data=built.shards.metadata,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
