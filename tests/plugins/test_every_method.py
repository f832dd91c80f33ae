"""Every method as a run: killed and resumed to the last bit, the same for 0 and 2 workers and for 1 and 2 ranks; its encoder is exported."""
from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import every_method as methods
import pytest
import torch
from processes import Processes
from safetensors.torch import load_file
from torch import Tensor

from twinview.analysis.export import export_encoder
from twinview.assembly import assemble
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.planning.memory import measure
from twinview.recipe import from_table

REMEMBER = ("moco", "moco_v2", "instdist", "swav", "densecl", "detco")  # in queues and banks, which move in every epoch

AMPLIFY = ("simclr", "moco", "byol", "simsiam", "instdist")  # last bits by BatchNorms over two or four vectors that are nearly alike


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def model(run: Path, step: int = methods.STEPS) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(run / f"checkpoints/step-{step:06d}/model.pt", weights_only=True, map_location="cpu")
    return found


@pytest.fixture(scope="module")
def whole(class_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A method's run in one piece, on one rank and without workers."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            train(from_table(methods.table(name, class_shards)), folder / name)
        return folder / name

    return run


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_killed_run_with_two_workers_goes_on_to_the_last_bit_and_is_exported(
    name: str, class_shards: str, tmp_path: Path, whole: Callable[[str], Path], processes: Processes
) -> None:
    run, expected = tmp_path / "run", losses(whole(name))
    killed = processes.begin(methods.train_until_killed, name, class_shards, run, leads=True)
    assert killed.wait(300) == -signal.SIGKILL, killed.stderr
    train(from_table(methods.table(name, class_shards, workers=2)), run, resume=True)
    assert losses(run) == expected and len(expected) == methods.STEPS and all(loss == loss for loss in expected)
    made, first = model(run), model(whole(name), methods.SAVED)
    one = model(whole(name))
    assert made.keys() == one.keys() and all(torch.equal(made[key], one[key]) for key in one)
    trained = [key for key in one if key.startswith("online.") and not torch.equal(one[key], first[key])]
    assert bool(trained) == (name != "random")
    assert name not in REMEMBER or [key for key in one if "state." in key and not torch.equal(one[key], first[key])]
    exported = load_file(export_encoder(run, tmp_path / "encoder.safetensors").path)
    of_the_run: dict[Any, list[Tensor]] = {}
    for key, value in made.items():
        if key.startswith("online.encoder."):
            of_the_run.setdefault(value.shape, []).append(value)
    assert exported and all(any(torch.equal(value, other) for other in of_the_run[value.shape]) for key, value in exported.items() if key != "pos_embed")


@pytest.mark.parametrize("name", methods.METHODS)
def test_bf16_under_zero_3_has_nearly_the_same_losses(name: str, class_shards: str, tmp_path: Path, whole: Callable[[str], Path]) -> None:
    """Parameters are whole in the modules' own passes alone, and features of another type than weights."""
    sharded = {"deepspeed": {"zero_optimization": {"stage": 3}}}
    train(from_table({**methods.table(name, class_shards, precision="bf16"), **sharded}), tmp_path / "run")
    found, expected = losses(tmp_path / "run"), losses(whole(name))
    assert len(found) == methods.STEPS and found[0] == pytest.approx(expected[0], rel=0.05, abs=0.02)
    assert all(loss == loss for loss in found)


@pytest.mark.parametrize("name", methods.METHODS)
def test_its_memory_is_planned(name: str, class_shards: str) -> None:
    recipe = from_table(methods.table(name, class_shards))
    found = measure(recipe, assemble(recipe), gpu=True)
    assert found.weights > 0 and found.plain.phases


def test_two_ranks_learn_what_one_learns(class_shards: str, tmp_path: Path, whole: Callable[[str], Path], processes: Processes) -> None:
    processes.call(methods.train_all, class_shards, tmp_path, timeout=900)
    for name in methods.METHODS:
        found, expected = losses(tmp_path / name), losses(whole(name))[: methods.SAVED]
        assert found[:2] == pytest.approx(expected[:2], rel=1e-3, abs=1e-6), name
        assert found == pytest.approx(expected, rel=0.1 if name in AMPLIFY else 1e-3, abs=1e-6), name
