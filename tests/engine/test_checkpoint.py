from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from twinview.analysis.load import load_encoder
from twinview.engine.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_model,
    random_states,
    read_checkpoint,
    save_checkpoint,
    set_random_states,
    steps_in,
)
from twinview.engine.distributed.process import join
from twinview.engine.train import train
from twinview.errors import CheckpointError
from twinview.recipe import from_table

CPU = torch.device("cpu")


def saved(folder: Path, *steps: int, keep: int = 9) -> nn.Module:
    join("cpu")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for step in steps:
        save_checkpoint(folder, model, {"0.weight": {"momentum_buffer": torch.ones(4, 3), "step": 3}}, {"step": step, "elapsed": 1.5}, keep=keep)
    return model


def test_the_newest_are_kept_and_the_files_are_no_pickles(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20, keep=2)
    assert steps_in(tmp_path) == [15, 20] and (tmp_path / "latest").read_text() == "step-000020"
    found = find_checkpoint(tmp_path)
    assert found.step == 20 and found.meta["elapsed"] == 1.5 and found.meta["ranks"] == 1
    assert sorted(found.meta["files"]) == ["model.pt", "optimizer.pt", "rank-0.pt"]
    assert torch.equal(found.load("optimizer.pt")["0.weight"]["momentum_buffer"], torch.ones(4, 3))
    assert find_checkpoint(tmp_path, 15).step == 15
    with pytest.raises(CheckpointError, match=r"holds no checkpoint of step 5\. There is: 15, 20\.$"):
        find_checkpoint(tmp_path, 5)


def test_saving_a_step_again_replaces_it_and_leaves_what_is_newer(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    saved(tmp_path, 5, keep=1)
    assert steps_in(tmp_path) == [5, 10] and find_checkpoint(tmp_path).step == 5


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "meta", "dangling"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 5, 10)
    newest = tmp_path / "step-000010"
    content = bytearray((newest / "model.pt").read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        (newest / "model.pt").write_bytes(content)
    elif damage == "short":
        (newest / "model.pt").write_bytes(content[:100])
    elif damage == "gone":
        (newest / "rank-0.pt").unlink()
    elif damage == "meta":
        (newest / "meta.json").write_text("{")
    else:
        newest.rename(tmp_path / "elsewhere")
    assert find_checkpoint(tmp_path).step == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "step-000010: " in said and said.endswith("Going on from step 5 instead.\n")
    for name in ("step-000005", "step-000010"):
        (tmp_path / name / "meta.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError) as e:
        find_checkpoint(tmp_path)
    assert "\n" not in str(e.value)


def test_what_a_kill_leaves_behind_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    (tmp_path / ".step-000010.tmp").mkdir()
    (tmp_path / ".step-000010.tmp/model.pt").write_bytes(b"half")
    assert find_checkpoint(tmp_path).step == 5
    (tmp_path / "latest").unlink()  # killed between the first checkpoint and its name
    assert find_checkpoint(tmp_path).step == 5


def test_nothing_there_and_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\. Start the run without resume=True"):
        find_checkpoint(tmp_path)
    saved(tmp_path, 5)
    meta = json.loads((tmp_path / "step-000005/meta.json").read_text())
    (tmp_path / "step-000005/meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(CheckpointError, match=r"is of format 99, this twinview reads 1\."):
        read_checkpoint(tmp_path / "step-000005")
    with pytest.raises(CheckpointError, match=r"is no run's folder"):
        load_encoder(tmp_path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(CheckpointError, match=r"model\.pt: holds more than tensors and is not read, since it could run programs\.$"):
        Checkpoint(tmp_path, {}).load("model.pt")


def test_another_model_is_told_by_the_name_that_differs(tmp_path: Path) -> None:
    model = saved(tmp_path, 5)
    found = find_checkpoint(tmp_path)
    load_model(found, model, 0, 1)
    with pytest.raises(CheckpointError, match=r"it lacks '2\.weight'"):
        load_model(found, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)), 0, 1)
    with pytest.raises(CheckpointError, match=r"it has besides '0\.bias'"):
        load_model(found, nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)), 0, 1)
    with pytest.raises(CheckpointError, match=r"'0\.weight' is \(4, 3\), not \(4, 2\)"):
        load_model(found, nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), 0, 1)


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [torch.rand(()).item(), random.random(), float(np.random.rand()), float(np.random.randn())]

    np.random.randn()  # leaves half a pair of normals behind, which belongs to the state
    torch.save(random_states(CPU), tmp_path / "states.pt")
    expected = draws()
    draws()
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True), CPU)
    assert draws() == expected


def test_the_encoder_of_a_run_is_found_without_deepspeed(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(from_table(tiny), tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    weights = find_checkpoint(tmp_path / "run/checkpoints").load("model.pt")
    assert not encoder.training
    assert all(torch.equal(v, weights[f"online.encoder.{k}"]) for k, v in encoder.state_dict().items())
    earlier = load_encoder(tmp_path / "run", step=8).state_dict()
    assert not torch.equal(earlier["body.0.weight"], encoder.state_dict()["body.0.weight"])
    code = "import sys; from pathlib import Path; from twinview.analysis.load import load_encoder; load_encoder(Path(sys.argv[1])); "
    code += "assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
