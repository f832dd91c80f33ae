"""A recipe trained on two ranks under every ZeRO stage beside a plain all-reduce loop: what test_zero.py asks for."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from twinview.data.loading.loader import training_batches
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import gathered
from twinview.engine.metrics import read_metrics
from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.step import take_step
from twinview.engine.train import train
from twinview.engine.zero import gathered_weights, load_whole_optimizer_state, sharded, whole_optimizer_state, whole_state
from twinview.errors import Preempted
from twinview.recipe import Recipe, from_table
from twinview.values import Batch, Progress

STEPS = 4
SGD = {"use": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
RULES = [{"use": "smallnet.rules"}]  # several groups, a frozen parameter
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": SGD, "extra": RULES},
    "adamw": {},
    "fused": {"optimizer": {"use": "adamw", "lr": 1e-3, "weight_decay": 0.01, "fused": True}},
    "accumulated": {"optimizer": SGD, "run": {"accumulation": 2}},
    "clipped": {"optimizer": SGD, "run": {"clip_gradients": 1e-2}, "target": {"momentum": 0.9, "update": "before_forward"}},
    "bf16": {"optimizer": SGD, "run": {"precision": "bf16"}},
}


def recipe_of(table: dict[str, Any], change: dict[str, Any], zero: dict[str, Any]) -> Recipe:
    run = {**table["run"], "steps": STEPS, **change.get("run", {})}
    return from_table({**table, **change, "run": run, "deepspeed": {"zero_optimization": zero}})


def steps_of(built: TrainSetup) -> Iterator[tuple[Progress, Iterator[Batch]]]:
    """Each step with its micro-batches."""
    run, recipe = built.recipe.run, built.recipe
    batches = training_batches(recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=STEPS)
    for step in range(STEPS):
        yield Progress(step, STEPS, 0, step / STEPS), iter([next(batches) for _ in range(run.accumulation)])


def by_hand(recipe: Recipe) -> tuple[dict[str, Tensor], list[float]]:
    """The same training by torch alone: backward, mean over ranks, clip, step, average."""
    from twinview.engine.optimizer import set_rates
    from twinview.engine.schedule import lr_factor, momentum_at

    built = build(recipe)
    model, optimizer, run = built.model.train(), built.optimizer, recipe.run
    losses = []
    for progress, batches in steps_of(built):
        set_rates(optimizer, recipe.optimizer.peak(run.batch_size), lr_factor(recipe.schedule, progress.share, built.warmup))
        if recipe.target.update == "before_forward":
            follow(model, momentum_at(recipe.target, progress.share))
        losses.append(0.0)
        for batch in batches:
            loss = model(batch, progress).loss
            (loss / run.accumulation).backward()
            losses[-1] += loss.item() / run.accumulation
        for p in built.trainable.values():
            assert p.grad is not None
            dist.all_reduce(p.grad)
            p.grad.div_(dist.get_world_size())
        if run.clip_gradients:
            torch.nn.utils.clip_grad_norm_(built.trainable.values(), run.clip_gradients)
        optimizer.step()
        optimizer.zero_grad()
        if recipe.target.update == "after_step":
            follow(model, momentum_at(recipe.target, progress.share))
    return model.state_dict(), losses


@torch.no_grad()
def follow(model: Any, momentum: float) -> None:
    online = dict(model.online.named_parameters())
    for name, p in model.target.named_parameters():
        p.lerp_(online[name], 1 - momentum)


def by_engine(recipe: Recipe, folder: Path) -> tuple[TrainSetup, Any, list[float]]:
    built = build(recipe)
    engine = wrap(built, folder)
    return built, engine, [take_step(built, engine, b, p, watch=True).numbers()["loss"] for p, b in steps_of(built)]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, as a part of the largest value of its tensor; 0.0 is: to the last bit."""
    assert not one or one.keys() == other.keys()
    return max((float((one[k].float() - other[k].float()).abs().max() / (other[k].float().abs().max() + 1e-12)) for k in one), default=0.0)


def against_the_plain_loop(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Case -> stage -> gap of the weights of both branches, gap of the losses."""
    found: dict[str, Any] = {}
    for name, change in CASES.items():
        expected, plain = by_hand(recipe_of(table, change, {}))
        found[name] = {}
        for stage in (0, 1, 2, 3):
            zero = {"stage": stage, **({"stage3_param_persistence_threshold": 100} if stage == 3 else {})}
            built, engine, losses = by_engine(recipe_of(table, change, zero), folder)
            assert sharded(built.model) == (stage == 3)
            found[name][stage] = [gap(whole_state(built.model), expected), max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))]
            if name == "adamw":
                found[name][stage] += about_the_rest(built, engine, expected)
    return found


def about_the_rest(built: TrainSetup, engine: Any, expected: dict[str, Tensor]) -> list[Any]:
    """The optimizer's memory there and back; the encoder called on one rank more often than on the other; shards of the target."""
    before = whole_optimizer_state(engine, built.optimizer, built.trainable)
    everyone = gathered(before)[0]
    flat = {f"{name}.{key}": value for name, values in before.items() for key, value in values.items()}
    load_whole_optimizer_state(engine, built.optimizer, built.trainable, everyone)
    after = whole_optimizer_state(engine, built.optimizer, built.trainable)
    same = gap(flat, {f"{name}.{key}": value for name, values in after.items() for key, value in values.items()}) == 0
    held = sum(int(getattr(p, "ds_tensor", p).numel()) for p in built.model.branches.target.parameters())
    whole = sum(v.numel() for k, v in expected.items() if k.startswith("target.") and "running" not in k and "tracked" not in k)
    images = torch.ones(2, 3, 32, 32)
    with torch.no_grad(), gathered_weights(engine):
        encoder = built.model.eval().online.encoder
        for _ in range(1 + dist.get_rank()):
            given = encoder(images).pooled
        kept = gap(built.model.state_dict(), expected) < 1e-6
    built.model.train()
    again = engine(next(next(steps_of(built))[1]), Progress(0, STEPS, 0, 0.0)).loss  # the hooks are back
    engine.backward(again)
    agree = len(set(gathered(float(given.sum())))) == 1
    return [sorted(next(iter(everyone.values()))), held / whole, same and kept and agree]


def over_stages(table: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Losses of a run that SIGTERM stopped under one stage and that goes on under another; the whole run under stage 0."""
    table = {**table, "run": {**table["run"], "steps": 6, "checkpoint_every": 100}}
    found: dict[str, list[float]] = {}
    for name, stages in {"whole": [0], "0-3": [0, 3], "3-1": [3, 1], "1-2-0": [1, 2, 0]}.items():
        for i, stage in enumerate(stages):
            zero = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if stage == 2 else {})}
            last = i == len(stages) - 1

            def end(row: dict[str, Any], at: int = 2 * (i + 1), last: bool = last) -> None:
                if row["step"] == at and not last:
                    os.kill(os.getpid(), signal.SIGTERM)  # rank 0 alone is told

            try:
                train(from_table({**table, "deepspeed": {"zero_optimization": zero}}), folder / name, resume="auto", on_progress=end)
                assert last
            except Preempted:
                assert not last
        found[name] = [row["loss"] for row in read_metrics(folder / name / "metrics.jsonl")]
    return found


def on_two_ranks(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What both ranks found."""
    found: dict[str, Any] = launch(2, lambda: {"plain": against_the_plain_loop(table, folder), "resumed": over_stages(table, folder)})
    return found
