"""Activation checkpointing changes nothing but memory: under every stage, with statistics over ranks, with depth that is dropped at random."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import recomputed
import torch
from processes import Processes

from twinview import api
from twinview.assembly import assemble
from twinview.engine.setup import build
from twinview.errors import RecipeError
from twinview.recipe import from_table

Table = dict[str, Any]
CASES: dict[str, Table] = {
    "resnet": {"encoder": {"use": "timm.encoder", "name": "test_resnet", "cells": "c4", "drop_path": 0.2}, "views": {"use": "byol.crops", "size": 32},
               "loss": [{"use": "byol.image", "hidden": 16, "channels": 8}], "optimizer": {"use": "sgd", "lr": 0.05}},
    "siameseim": {
        "views": {"use": "siameseim.crops", "size": 32},
        "masks": {"use": "siameseim.blocks", "count": 8},
        "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 16, "depth": 3, "heads": 2, "positions": "sine_row",
                    "drop_path": 0.2},
        "align": {"use": "siameseim.relative", "depth": 1, "attention_heads": 2},
        "loss": [{"use": "siameseim.dense", "channels": 16, "projector_depth": 1, "attention_heads": 2}],
    },
}


def tables(tiny: Table) -> dict[str, Table]:
    plain = {k: v for k, v in tiny.items() if k not in ("views", "encoder", "loss")}
    made = {name: {**plain, **case} for name, case in CASES.items()}
    made["siameseim"]["run"] = {**plain["run"], "precision": "bf16"}
    return made


def test_two_ranks_learn_the_same_under_stages_0_to_3(tiny: Table, processes: Processes) -> None:
    found = processes.call(recomputed.on_two_ranks, tables(tiny))
    for name, blocks in (("resnet", 4), ("siameseim", 3 + 1 + 1)):  # of encoder, projector and decoder
        assert len(found[name]) == 2
        for stage, answer in found[name].items():
            assert answer == [True, True, True, 0, blocks], (name, stage)


def test_an_encoder_without_blocks_is_refused_before_the_data(tiny: Table) -> None:
    with pytest.raises(RecipeError, match=r"^\[run\] activation_checkpointing: \[encoder\] smallnet.encoder names no blocks\. Leave it out, or choose another"):
        assemble(from_table({**tiny, "run": {**tiny["run"], "activation_checkpointing": True}}))


def test_a_network_of_timms_without_blocks_is_refused_before_the_first_step(tiny: Table) -> None:
    with pytest.raises(RecipeError, match=r"^\[run\] activation_checkpointing: \[encoder\] timm.encoder names no blocks of this network"):
        build(from_table({**tiny, "encoder": {"use": "timm.encoder", "name": "poolformerv2_s12"}, "run": {**tiny["run"], "activation_checkpointing": True}}))


def test_a_run_goes_on_with_it(tiny: Table, tmp_path: Path) -> None:
    """Memory ran short: what began without it is resumed with it, and the encoder loads as ever."""
    table = tables(tiny)["resnet"]
    whole = api.train(table, "run.steps=4", "run.checkpoint_every=2", run=tmp_path / "run")
    before = api.load(tmp_path / "run").state_dict()
    shutil.rmtree(tmp_path / "run/checkpoints/step-000004")
    (tmp_path / "run/checkpoints/latest").write_text("step-000002")
    again = api.train(table, "run.steps=4", "run.checkpoint_every=2", "run.activation_checkpointing=true", run=tmp_path / "run", resume=True)
    after = api.load(tmp_path / "run").state_dict()
    assert again.loss == whole.loss and after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
