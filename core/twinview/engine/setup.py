"""From a recipe to a model on its device, its optimizer, its shards, and the DeepSpeed engine around them."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple, cast

import attrs
import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from twinview.assembly import Assembly, assemble
from twinview.assembly.checks import check_labels
from twinview.data.dataset.base import DataSource
from twinview.data.dataset.classes import missing_classes
from twinview.data.dataset.open import open_data
from twinview.data.dataset.order import steps_per_epoch
from twinview.data.dataset.statistics import with_measured
from twinview.data.dataset.stream import Stream
from twinview.data.loading.factory import Paths
from twinview.data.loading.loader import check_choice
from twinview.data.remote.shard import Access, RemoteShard
from twinview.engine.agreement import check_data, check_recipes
from twinview.engine.clip import clip_each
from twinview.engine.compiled import compile_encoders
from twinview.engine.deepspeed_config import check_recipe, deepspeed_config, micro_batch, stage
from twinview.engine.distributed.process import Ranks, join, on_first
from twinview.engine.frozen import Frozen
from twinview.engine.loss_scale import LossScale, install
from twinview.engine.optimizer import make_optimizer
from twinview.engine.precision import resolve_precision
from twinview.engine.schedule import warmup_share
from twinview.errors import RecipeError
from twinview.machine import keep_freed_memory
from twinview.model import Siamese, make_model
from twinview.ops.seeding import seed_of
from twinview.recipe import Recipe
from twinview.recipe.tables import ORDER
from twinview.values import DataFactory, Dims


class TrainSetup(NamedTuple):
    """What a run trains with, on one rank."""

    ranks: Ranks
    recipe: Recipe  # as resolved: precision and format of the order said plainly, mean and std in numbers
    assembly: Assembly
    shards: DataSource
    dims: Dims
    model: Siamese
    optimizer: Optimizer
    trainable: dict[str, nn.Parameter]  # what the optimizer moves, by name in the online branch
    frozen: Frozen  # of these, what waits for an epoch
    epoch: int  # steps of an epoch
    steps: int  # of the run; 0 where it is measured in hours
    warmup: float  # share of the run


def build(recipe: Recipe, *, assembly: Assembly | None = None, going_on: bool = False) -> TrainSetup:
    """Join the ranks and make everything that a recipe names; every rank calls it.  Raises TwinviewError before the first step.

    Faults of composition come before the shards are opened, and so do ranks whose recipes differ.  `assembly`: the recipe's parts, where they are
    made already.  `going_on`: weights come from a checkpoint, not from [encoder] weights, which may be gone by now.
    """
    check_recipe(recipe)
    ranks = join(recipe.run.device)
    micro_batch(recipe, ranks.world)
    recipe = resolve_precision(recipe, ranks.device.type)
    assembly = assembly or assemble(recipe)
    check_recipes(recipe, assembly)
    shards = _open_data(recipe)
    check_data(str(shards.checksum))
    recipe = with_measured(recipe, shards)
    recipe = attrs.evolve(recipe, data=attrs.evolve(recipe.data, order=recipe.data.order or ORDER))
    assembly = assembly.under(recipe)
    epoch = steps_per_epoch(len(shards), recipe.run.batch_size)
    check_ids(assembly, shards)
    check_classes(assembly, shards)
    if assembly.has("sample_weights"):
        check_choice(recipe, next(assembly.uses[label][1] for label in assembly.answers("sample_weights")))
    model = make_model(assembly, len(shards), shards.classes, weights=not going_on, data=cast(DataFactory, Paths(recipe))).to(ranks.device)
    if recipe.run.sync_batchnorm and ranks.world > 1:
        from twinview.ops.sync_batchnorm import synchronize_batchnorm

        for branch in (model.online, model.target):
            if branch is not None:
                synchronize_batchnorm(branch)
    if recipe.run.activation_checkpointing:
        _recompute_blocks(model)
    check_batchnorm(model, recipe, ranks.world)
    optimizer, trainable = make_optimizer(assembly, model.online)
    _seed(recipe.run.seed, ranks.rank)
    steps = _steps(recipe, epoch)
    frozen = Frozen(optimizer, trainable)
    warmup = warmup_share(recipe, steps, epoch)
    return TrainSetup(ranks, recipe, assembly, shards, model.dims, model, optimizer, trainable, frozen, epoch, steps, warmup)


def check_ids(assembly: Assembly, shards: DataSource) -> None:
    """Raises RecipeError where a part keeps something by sample and nobody has counted the samples of each streamed shard."""
    needy = [label for label, traits in assembly.traits.items() if "ids" in traits.needs]
    if needy and isinstance(shards, Stream) and shards.counts is None:
        said = "keeps something for each sample, and of streamed shards without manifest or index no sample has a number"
        raise RecipeError(f"{assembly.uses[needy[0]][1]}: {said}. Write an index (twinview shards index), or leave [data] streaming out.")


def check_classes(assembly: Assembly, shards: DataSource) -> None:
    """Raises RecipeError where a part needs class numbers that the shards do not have: the first sample at fault, or the source that has none."""
    if not shards.classes:
        check_labels(assembly, lambda: missing_classes(shards))


def _recompute_blocks(model: Siamese) -> None:
    from twinview.ops.recompute import recompute

    check_blocks(model.assembly.recipe, model.online.encoder)
    inside = set(model.online.encoder.modules()) if model.assembly.recipe.run.compile else set()
    for block in model.online.recomputable():
        recompute(block, compiled=block in inside)


def check_blocks(recipe: Recipe, encoder: nn.Module) -> None:
    """Raises RecipeError where activation checkpointing has nothing to work on, or nothing that can be compiled with it."""
    if not recipe.run.activation_checkpointing:
        return
    blocks = cast(Any, encoder).recomputable() if hasattr(encoder, "recomputable") else []
    if not blocks:
        raise no_blocks(recipe)
    if recipe.run.compile and any(True for block in blocks for _ in block.buffers()):
        what = "compiled blocks that are computed twice would move their BatchNorm statistics twice"
        raise RecipeError(f"[run] compile: {what}. Leave activation_checkpointing out, or compile.")


def no_blocks(recipe: Recipe) -> RecipeError:
    """What to say where activation checkpointing has nothing to work on."""
    what = f"[encoder] {recipe.encoder.use} names no blocks of this network"
    return RecipeError(f"[run] activation_checkpointing: {what}. Leave it out, or choose another network.")


def check_batchnorm(model: Siamese, recipe: Recipe, world: int) -> None:
    """Raises RecipeError where BatchNorm would see a single vector."""
    alone = world == 1 or not recipe.run.sync_batchnorm
    if alone and micro_batch(recipe, world) == 1 and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        raise RecipeError("[run] batch_size, accumulation: leave one image at a time, and BatchNorm needs two. Write a larger batch_size.")


def _open_data(recipe: Recipe) -> DataSource:
    """Rank 0 first: it may have to draw the scenes, or to index the tars, and the others read what it left, and what it was told of URLs."""
    mine, access = list[DataSource](), Access.of(recipe.data)

    def opened() -> dict[str, list[RemoteShard]]:
        mine.append(open_data(recipe.data, access))
        return access.found

    found = on_first(opened)
    return mine[0] if mine else open_data(recipe.data, attrs.evolve(access, found=found))


def _steps(recipe: Recipe, epoch: int) -> int:
    run = recipe.run
    return run.steps or (round(run.epochs * epoch) or 1 if run.epochs else 0)


def _seed(seed: int, rank: int) -> None:
    """Other draws on each rank, for dropout and its like; starts of weights and draws of samples have seeds of their own."""
    torch.manual_seed(seed_of(seed, "rank", rank))
    random.seed(seed_of(seed, "python", rank))
    np.random.seed(seed_of(seed, "numpy", rank) % 2**32)


def wrap(built: TrainSetup, folder: Path) -> Any:
    """The DeepSpeed engine around the model: it averages gradients over ranks, clips, accumulates, steps and feeds the monitors."""
    import deepspeed

    built.model.train()
    if built.ranks.device.type == "cpu":
        keep_freed_memory()
    config = deepspeed_config(built.recipe, built.ranks.world, folder)
    try:
        engine, *_ = deepspeed.initialize(model=built.model, optimizer=built.optimizer, config=config)
    except ValueError as e:  # pydantic's, of a table of DeepSpeed
        raise RecipeError(f"[deepspeed]: DeepSpeed refuses it: {' '.join(str(e).split())}") from None
    install(engine, LossScale(built.recipe.run.precision == "fp16", list(built.trainable.values())))
    if not stage(built.recipe):
        engine.enable_backward_allreduce = built.ranks.world > 1  # alone it would copy every gradient there and back
        if built.recipe.run.channels_last:  # only now: DeepSpeed's first broadcast reads parameters as plain bytes
            built.model.to(memory_format=torch.channels_last)  # not under stages 1-3, where weights lie in rows: convolutions turn them at each call
    if built.recipe.optimizer.clip:
        clip_each(engine, built.optimizer, built.trainable, built.recipe.optimizer.clip)
    compile_encoders(built.recipe, built.model)
    return engine
