"""What hooks write stays: the same on one rank and two, under every ZeRO stage, for any accumulation, and after a resume."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hook_recipes
import pytest
import torch
from processes import Processes
from torch import Tensor

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table

Table = dict[str, Any]
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, install_module: Callable[..., None], photo_shards: str, processes: Processes) -> Path:
    """Every recipe trained by two ranks, and some by one."""
    found = tmp_path_factory.mktemp("hooks")
    install_module("toy")
    install_module("held", Path(__file__).with_name("hook_methods.py").read_text())
    toy = {
        "views": {"use": "toy.views"}, "encoder": {"use": "toy.encoder"}, "loss": [{"use": "toy.pooled"}], "optimizer": {"use": "sgd", "lr": 0.1},
        "run": {"batch_size": 4, "log_every": 1},
    }
    tables: dict[str, Table] = hook_recipes.recipes(toy, photo_shards)
    processes.call(hook_recipes.train_all, tables, found, 2)
    for name in ("deep-adamw-0", "writes-0", "writes-2", "contrast-1", "contrast-2"):
        train(from_table(tables[name]), found / f"{name}-1")
    return found


def state(folder: Path, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / name / "checkpoints/step-000006/model.pt", weights_only=True)
    return found


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


def test_a_classifier_made_anew_is_the_same_under_every_stage_on_one_rank_and_two(folder: Path) -> None:
    whole = state(folder, "deep-adamw-0-1")
    assert all(gap(state(folder, f"deep-adamw-{stage}-2"), whole) < 2e-5 for stage in STAGES)


def test_the_optimizer_starts_afresh_on_what_is_made_anew(folder: Path) -> None:
    for stage in STAGES:
        memory = torch.load(folder / f"deep-adamw-{stage}-2/checkpoints/step-000006/optimizer.pt", weights_only=True)
        counts = {name: float(values["step"]) for name, values in memory.items()}
        assert {count for name, count in counts.items() if "classifier" in name} == {3.0}  # since the second epoch began
        assert {count for name, count in counts.items() if "encoder" in name} == {6.0}


def test_a_classifier_made_anew_is_drawn_anew_each_epoch_and_its_target_with_it(folder: Path) -> None:
    found = state(folder, "deep-adamw-0-1")
    assert not any(name.startswith("target.") for name in found)  # one view, no pairs: nothing asks for a target


def test_writes_to_parameters_stay_and_clipping_and_freezing_are_alike_under_every_stage(folder: Path) -> None:
    whole = state(folder, "writes-0-1")
    assert torch.allclose(whole["online.heads.toy/pooled/projector.weight"].norm(dim=1), torch.ones(4))
    assert gap(state(folder, "writes-2-1"), whole) < 1e-5
    assert all(gap(state(folder, f"writes-{stage}-2"), whole) < 1e-5 for stage in STAGES)


def test_what_is_frozen_for_an_epoch_begins_with_the_optimizers_first_step(folder: Path) -> None:
    for stage in STAGES:
        memory = torch.load(folder / f"writes-{stage}-2/checkpoints/step-000006/optimizer.pt", weights_only=True)
        counts = {name: float(values["step"]) for name, values in memory.items()}
        assert {count for name, count in counts.items() if "predictor" in name} == {3.0}
        assert {count for name, count in counts.items() if "predictor" not in name} == {6.0}


def test_a_queue_a_center_and_an_average_do_not_notice_accumulation_or_ranks(folder: Path) -> None:
    whole = state(folder, "contrast-1-1")
    assert int(whole["state.held/contrast/queue.at"]) == 0 and float(whole["state.held/contrast/center.center"].norm()) > 0
    assert all(gap(state(folder, f"contrast-{accumulation}-{ranks}"), whole) < 1e-5 for accumulation in (1, 2) for ranks in (1, 2))


def test_notes_of_both_hooks_are_logged(folder: Path) -> None:
    row = list(read_metrics(folder / "contrast-2-1" / "metrics.jsonl"))[-1]
    assert row["micro"] == 0.5 and row["center"] > 0 and row["first"] == 3.0  # noted of one micro-batch of two
