from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.errors import RecipeError
from twinview.recipe import from_table

DRIVER = Path(__file__).with_name("ranks_driver.py")
Table = dict[str, Any]


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def drive(folder: Path, table: Table) -> None:
    """Once for all tests of this file."""
    if not (folder / "norm.pt").is_file():
        (folder / "recipe.json").write_text(json.dumps(table))
        done = subprocess.run([sys.executable, str(DRIVER), str(folder)], capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 0, done.stderr


def still(tiny: Table) -> Table:
    """Without dropout, which each rank draws for itself."""
    return {**tiny, "encoder": {"use": "tiny.encoder", "dropout": 0.0}, "run": {**tiny["run"], "log_every": 1}}


def test_batchnorm_over_two_ranks_is_batchnorm_over_the_whole_batch(tiny: Table, driven: Path) -> None:
    drive(driven, still(tiny))
    found = torch.load(driven / "norm.pt", weights_only=True)
    for name, expected in found["alone"].items():
        assert found["ranks"][name].keys() == expected.keys()
        tolerance = 2e-2 if name == "bf16" else 2e-4  # at mean 30 and deviation 0.1 fp32 itself has four digits
        for key, value in expected.items():
            gap = (found["ranks"][name][key].float() - value.float()).abs().max().item()
            assert gap <= tolerance * max(1.0, value.abs().max().item()), (name, key, gap)


def test_two_ranks_learn_what_one_learns(tiny: Table, driven: Path, tmp_path: Path) -> None:
    drive(driven, still(tiny))
    train(from_table(still(tiny)), tmp_path / "one")
    two, one = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (driven / "two", tmp_path / "one"))
    assert two == pytest.approx(one, rel=1e-4) and len(two) == 12


def test_a_run_goes_on_with_another_number_of_ranks_and_says_so(tiny: Table, driven: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drive(driven, still(tiny))
    (driven / "two/checkpoints/step-000012").rename(driven / "step-000012")
    (driven / "two/checkpoints/latest").write_text("step-000008")
    train(from_table(still(tiny)), driven / "two", resume=True)
    assert "was written by 2 ranks and goes on with 1 rank: not to the last bit." in capfd.readouterr().err
    train(from_table(still(tiny)), tmp_path / "one")
    gone_on, one = ([row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (driven / "two", tmp_path / "one"))
    assert gone_on == pytest.approx(one, rel=1e-4) and len(gone_on) == 12


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_anything_is_written(tiny: Table, tmp_path: Path) -> None:
    table = {**tiny, "run": {**tiny["run"], "batch_size": 5}}
    code = "import json, sys; from pathlib import Path; from twinview.engine.distributed.launch import launch; from twinview.engine.train import train; "
    code += "from twinview.recipe import from_table; recipe = from_table(json.loads(sys.argv[1])); launch(2, lambda: train(recipe, Path(sys.argv[2])))"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(table), str(tmp_path / "run")], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last == "twinview.errors.RecipeError: [run] batch_size: 5 does not divide by 2 ranks x run.accumulation 1. Write 4 or 6."
    assert RecipeError.__name__ in last and not (tmp_path / "run").exists()
