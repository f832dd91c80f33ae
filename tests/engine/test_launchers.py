"""The same recipe under the launchers of others: torchrun and deepspeed, two ranks each."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from twinview.engine.metrics import read_metrics
from twinview.engine.train import train
from twinview.recipe import from_table


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def command(launcher: str) -> list[str]:
    bin_dir = Path(sys.executable).parent
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "twinview", "--"]  # else it takes --run for its --run-path
    return [sys.executable, str(bin_dir / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), "--module", "twinview"]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launcher_trains_what_one_process_trains(tiny: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    table = {**tiny, "encoder": {"use": "tiny.encoder", "dropout": 0.0}, "run": {**tiny["run"], "steps": 3}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")}
    words = [*command(launcher), "train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "two")]
    done = subprocess.run(words, capture_output=True, text=True, env={**env, "DS_ACCELERATOR": "cpu"}, cwd=tmp_path, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    train(from_table(table), tmp_path / "one")
    two, one = ([row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-4) and len(two) == 3
    assert '"ranks": 2' in (tmp_path / "two/manifest.json").read_text()
