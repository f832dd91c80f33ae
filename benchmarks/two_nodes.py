"""Two "nodes" on one machine, one of which is lost: torchrun with rendezvous, twice two ranks, killed in mid-run and gone on with.

    python benchmarks/two_nodes.py                    # BYOL on a small ViT, 24 steps, node 1 killed after step 8

Each node is a torchrun of its own with two ranks; they meet at a rendezvous, as on two machines.  Node 1, its ranks and its data workers are killed
at once (SIGKILL).  Node 0 has to end by itself; both are then started again with --resume auto.  The losses are compared with those of one process
that was never stopped.  Writes benchmarks/results/two_nodes.log.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tomli_w
from PIL import Image

from twinview.data.prepare.pack import pack_images
from twinview.engine.metrics import read_metrics

RESULT = Path(__file__).parent / "results" / "two_nodes.log"
NODES, RANKS, PATIENCE = 2, 2, 300  # nodes, ranks of each, seconds until a run that says nothing is given up


class Log:
    """What happened, and when; on the screen and for the file."""

    def __init__(self) -> None:
        self.began, self.lines = time.monotonic(), list[str]()

    def say(self, text: str) -> None:
        """A line with its time."""
        self.lines.append(f"{time.monotonic() - self.began:6.1f} s  {text}")
        print(self.lines[-1], flush=True)


def prepare(folder: Path, steps: int) -> Path:
    """Shards of noise, and a recipe; BatchNorm over all ranks, so that the number of ranks changes nothing but the order of sums."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(64):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        noise.resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"images/{i:03d}.jpg")
    pack_images(folder / "images", folder / "shards")
    recipe = {
        "views": {"use": "byol.crops", "size": 32},
        "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 2, "patch": 8, "img_size": 32},
        "loss": [{"use": "byol.image", "hidden": 128, "channels": 32}],
        "data": {"shards": str(folder / "shards"), "workers": 1},
        "optimizer": {"use": "adamw", "lr": 0.001},
        "run": {"steps": steps, "batch_size": 16, "log_every": 1, "checkpoint_every": 4, "device": "cpu"},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    return folder / "recipe.toml"


def start(recipe: Path, run: Path) -> list[subprocess.Popen[str]]:
    """Both nodes; every process of one bears its mark in the environment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    meet = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", port, "--local_addr", "127.0.0.1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--nproc_per_node", str(RANKS), "--max_restarts", "0", *meet]
    words = [*torchrun, "-m", "twinview", "--", "train", str(recipe), "--run", str(run), "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**environment, "NODE": f"{run}#{n}"}) for n in range(NODES)]


def processes(run: Path, node: int) -> list[int]:
    """All processes of a node: torchrun, ranks, data workers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if f"NODE={run}#{node}\0".encode() in environment:
                found.append(int(folder.name))
    return found


def wait_for(run: Path, steps: int) -> None:
    """Until the run has made them."""
    until = time.monotonic() + PATIENCE
    while sum(1 for _ in read_metrics(run / "metrics.jsonl")) < steps:
        assert time.monotonic() < until, "no step was made"
        time.sleep(0.05)


def told(said: str) -> list[str]:
    """twinview's own lines; paths of this machine left out."""
    return [line.split(": ", 1)[1] for line in said.splitlines() if line.startswith("twinview: ")]


def measure(steps: int, at: int) -> list[str]:
    log = Log()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, run = prepare(folder, steps), folder / "run"
        log.say(f"{NODES} nodes start, {RANKS} ranks each")
        first = start(recipe, run)
        wait_for(run, at)
        log.say(f"{at} steps made; node 1 is killed, {len(processes(run, 1))} processes at once")
        killed = time.monotonic()
        for pid in processes(run, 1):
            os.kill(pid, signal.SIGKILL)
        said = first[0].communicate(timeout=PATIENCE)[1]
        first[1].communicate()
        log.say(f"node 0 has ended by itself, {time.monotonic() - killed:.1f} s after the kill, exit code {first[0].returncode}; it said:")
        log.lines += [f"            {line}" for line in dict.fromkeys(told(said))]
        log.say(f"processes left: {len(processes(run, 0) + processes(run, 1))}")
        log.say("both nodes start again, with --resume auto")
        for node in (again := start(recipe, run)):
            said = node.communicate(timeout=PATIENCE)[1]
            assert node.returncode == 0, said
        sittings = json.loads((run / "manifest.json").read_text())["sittings"]
        log.say(f"all {steps} steps made, exit codes {[node.returncode for node in again]}; sittings began at step {[s['step'] for s in sittings]}")
        subprocess.run([sys.executable, "-m", "twinview", "train", str(recipe), "--run", str(folder / "whole")], check=True, capture_output=True)
        whole, two = ([row["loss"] for row in read_metrics(folder / name / "metrics.jsonl")] for name in ("whole", "run"))
        assert len(two) == len(whole) == steps
        gaps = [abs(a - b) for a, b in zip(two, whole, strict=True)]
        log.say(f"one process, never stopped: losses {whole[0]:.4f} to {whole[-1]:.4f}; from them the largest difference is {max(gaps):.1e}")
    return log.lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--at", type=int, default=8, help="steps after which node 1 is killed")
    args = parser.parse_args()
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "deepspeed", "twinview"))
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores; {versions}"
    head = [f"python benchmarks/two_nodes.py --steps {args.steps} --at {args.at}", machine]
    lines = measure(args.steps, args.at)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join([*head, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
