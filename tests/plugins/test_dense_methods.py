"""PixPro, DenseCL, ReSim, DetCo and SwAV as runs: resumed to the last bit, the same for 0 and 2 workers, for 1 and 2 ranks; their encoder is exported."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_methods as methods
import pytest
import torch
from processes import Processes

from twinview.analysis.export import export_encoder
from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(photo_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A method's run in one piece, on one rank and without workers."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            train(from_table(methods.table(name, photo_shards)), folder / name)
        return folder / name

    return run


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_run_that_was_cut_goes_on_to_the_last_bit_with_two_workers(name: str, photo_shards: str, tmp_path: Path, whole: Callable[[str], Path]) -> None:
    def cut(row: dict[str, Any]) -> None:
        if row["step"] == 3:  # one step behind a checkpoint
            raise KeyboardInterrupt

    recipe = from_table(methods.table(name, photo_shards, workers=2))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", on_progress=cut)
    train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(whole(name)) and len(losses(whole(name))) == 6
    made = [torch.load(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.pt", weights_only=True, map_location="cpu") for run in (tmp_path / "run", whole(name))]
    assert_equal(*made)
    export_encoder(tmp_path / "run", tmp_path / "encoder.safetensors")
    assert (tmp_path / "encoder.safetensors").is_file()


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])


def test_two_ranks_learn_what_one_learns(photo_shards: str, tmp_path: Path, whole: Callable[[str], Path], processes: Processes) -> None:
    processes.call(methods.train_all, tmp_path, photo_shards)
    for name in methods.METHODS:
        assert losses(tmp_path / name) == pytest.approx(losses(whole(name)), rel=1e-2), name  # assignments amplify last bits from step to step
