"""The same recipe under the launchers of others: torchrun on two nodes that are one machine, deepspeed with two ranks, and with a hostfile."""
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


SSH = """#!/bin/sh
# stands in for ssh: the last words are run here, whatever the host
while [ "$1" != node-a ]; do shift; done
shift
exec "$@"
"""
PDSH = """#!/bin/sh
# stands in for pdsh: what is to be run on each host of -w runs here, %n being its place
while [ "$1" != -w ]; do shift; done
hosts=$(echo "$2" | tr , " "); shift 2
n=0
for host in $hosts; do
    sh -c "$(echo "$*" | sed "s/%n/$n/g")" &
    all="$all $!"; n=$((n + 1))
done
for one in $all; do wait "$one" || code=$?; done
exit ${code:-0}
"""


def commands(launcher: str, folder: Path) -> list[list[str]]:
    """What is typed: for torchrun on each of two nodes, with one rank each; for deepspeed once."""
    port, deepspeed = str(free_port()), [sys.executable, str(Path(sys.executable).parent / "deepspeed")]
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "0"]
        meet = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", port, "--local_addr", "127.0.0.1"]
        return [[*torchrun, *meet, "-m", "twinview", "--"]] * 2  # -- else it takes --run for its --run-path
    if launcher == "hostfile":
        (folder / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
        for name, script in (("ssh", SSH), ("pdsh", PDSH)):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        return [[*deepspeed, "--hostfile", str(folder / "hosts"), "--master_addr", "127.0.0.1", "--master_port", port, "--module", "twinview"]]
    return [[*deepspeed, "--num_gpus", "2", "--master_port", port, "--module", "twinview"]]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "hostfile"])
def test_a_launcher_trains_what_one_process_trains(tiny: dict[str, Any], tmp_path: Path, launcher: str) -> None:
    table = {**tiny, "encoder": {"use": "smallnet.encoder", "dropout": 0.0}, "run": {**tiny["run"], "steps": 3}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(table))
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")}
    train_it = ["train", str(tmp_path / "tiny.toml"), "--run", str(tmp_path / "two")]
    env = {**plain, "DS_ACCELERATOR": "cpu", "PATH": f"{tmp_path}{os.pathsep}{plain['PATH']}"}
    nodes = [
        subprocess.Popen([*words, *train_it], stderr=subprocess.PIPE, text=True, env=env, cwd=tmp_path) for words in commands(launcher, tmp_path)
    ]
    for node in nodes:
        said = node.communicate(timeout=240)[1]
        assert node.returncode == 0, said
    train(from_table(table), tmp_path / "one")
    two, one = ([row["loss"] for row in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-4) and len(two) == 3
    assert '"ranks": 2' in (tmp_path / "two/manifest.json").read_text()
