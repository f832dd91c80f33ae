"""Recipes trained on two ranks with and without activation checkpointing: what test_recompute_ranks.py asks for.

Recipe -> stage -> whether losses, and weights and buffers of both branches on both ranks, are equal to the last bit; the blocks.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinview.data.loading.loader import training_batches
from twinview.engine.distributed.launch import launch
from twinview.engine.distributed.process import gathered
from twinview.engine.setup import build, wrap
from twinview.engine.step import take_step
from twinview.engine.zero import whole_state
from twinview.recipe import from_table
from twinview.values import Progress

STEPS = 3
STAGES = {"resnet": (0, 2), "siameseim": (1, 3)}


def trained(table: dict[str, Any], stage: int, recomputing: bool) -> tuple[list[float], dict[str, Tensor], list[dict[str, Tensor]], int]:
    """Losses; weights and rank 0's buffers; every rank's buffers; how many blocks compute twice."""
    run = {**table["run"], "steps": STEPS, "activation_checkpointing": recomputing}
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 100} if stage == 3 else {})}
    built = build(from_table({**table, "run": run, "deepspeed": {"zero_optimization": zero}}))
    engine = wrap(built, Path())
    batches = training_batches(built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, steps=STEPS)
    losses = [take_step(built, engine, batches, Progress(i, STEPS, 0, i / STEPS), watch=True).numbers()["loss"] for i in range(STEPS)]
    twice = sum(type(m).__mro__[1].__name__ == "_Recomputed" for m in built.model.modules())
    assert all(n.startswith("online") for n, m in built.model.named_modules() if type(m).__mro__[1].__name__ == "_Recomputed")
    return losses, whole_state(built.model), gathered({n: b.clone() for n, b in built.model.named_buffers()}), twice


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def compared(tables: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, table in tables.items():
        found[name] = {}
        for stage in STAGES[name]:
            plain, again = trained(table, stage, False), trained(table, stage, True)
            buffers = all(same(a, b) for a, b in zip(plain[2], again[2], strict=True))
            found[name][stage] = [plain[0] == again[0], same(plain[1], again[1]), buffers, plain[3], again[3]]
    return found


def on_two_ranks(tables: dict[str, Any]) -> dict[str, Any]:
    """What both ranks found."""
    found: dict[str, Any] = launch(2, lambda: compared(tables))
    return found
