from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ranks_work
import tomli_w
from processes import Processes

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table

Table = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def two(tiny: Table, folder: Path, processes: Processes) -> Path:
    """A run of two ranks, once for all tests of this file."""
    if not (folder / "two").exists():
        processes.call(ranks_work.train_on_two, still(tiny), folder / "two")
    return folder / "two"


def still(tiny: Table) -> Table:
    """Without dropout, which each rank draws for itself."""
    return {**tiny, "encoder": {"use": "smallnet.encoder", "dropout": 0.0}, "run": {**tiny["run"], "log_every": 1}}


def test_batchnorm_over_two_ranks_is_batchnorm_over_the_whole_batch(processes: Processes) -> None:
    found = processes.call(ranks_work.on_two_ranks)
    for name, expected in found["alone"].items():
        assert found["ranks"][name].keys() == expected.keys()
        tolerance = 2e-2 if name == "bf16" else 2e-4  # at mean 30 and deviation 0.1 fp32 itself has four digits
        for key, value in expected.items():
            gap = (found["ranks"][name][key].float() - value.float()).abs().max().item()
            assert gap <= tolerance * max(1.0, value.abs().max().item()), (name, key, gap)


def test_two_ranks_learn_what_one_learns(tiny: Table, two: Path, tmp_path: Path) -> None:
    train(from_table(still(tiny)), tmp_path / "one")
    both, one = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (two, tmp_path / "one"))
    assert both == pytest.approx(one, rel=1e-4) and len(both) == 12


def test_a_run_goes_on_with_another_number_of_ranks_and_says_so(tiny: Table, two: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = shutil.copytree(two, tmp_path / "two")
    shutil.rmtree(two / "checkpoints/step-000012")
    (two / "checkpoints/latest").write_text("step-000008")
    train(from_table(still(tiny)), two, resume=True)
    assert "was written by 2 ranks and goes on with 1 rank: not to the last bit." in capfd.readouterr().err
    train(from_table(still(tiny)), tmp_path / "one")
    gone_on, one = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (two, tmp_path / "one"))
    assert gone_on == pytest.approx(one, rel=1e-4) and len(gone_on) == 12


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_anything_is_written(tiny: Table, tmp_path: Path, processes: Processes) -> None:
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps({**tiny, "run": {**tiny["run"], "batch_size": 5}}))
    done = processes.run("train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "run"), "--ranks", "2")
    assert done.returncode == 2
    assert done.stderr == "twinview: [run] batch_size: 5 does not divide by 2 ranks x run.accumulation 1. Write 4 or 6.\n"
    assert not (tmp_path / "run").exists()
