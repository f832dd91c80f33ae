"""What a command costs before it does anything: CPU seconds of `check` and of a run of one step, this checkout beside another.

    git worktree add ../before d4fcd04
    python benchmarks/startup.py ../before --rounds 3

The two take turns; the smallest of the rounds counts, since other work on the machine only adds.  `import torch` alone stands beside them.
Writes benchmarks/results/startup.json.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import commit, processor

HERE = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "startup.json"
SMALL = ["evaluate=[]", "data.shards=scenes:val"]
COMMANDS = {
    "import torch": [],
    "check byol/camvid": ["check", "byol/camvid", *SMALL],
    "check siameseim/cifar10_vit_tiny": ["check", "siameseim/cifar10_vit_tiny", *SMALL],
    "train multisiam/quickstart, one step": ["train", "multisiam/quickstart", "run.steps=1", "run.precision=fp32", "data.workers=0", *SMALL],
}


def cpu_seconds(checkout: Path, command: list[str]) -> float:
    """Of the command as a process of its own, with that checkout's code."""
    started = "from twinview.cli import entry; entry()" if command else "import torch"
    environment = {**os.environ, "PYTHONPATH": f"{checkout}/core:{checkout}/plugins", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", started, *command], cwd=folder, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time every command in both checkouts, a first round unseen."""
    ask = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ask.add_argument("before", type=Path, help="a checkout of another commit")
    ask.add_argument("--rounds", type=int, default=3)
    args = ask.parse_args()
    checkouts = {"before": args.before.resolve(), "after": HERE}
    seconds: dict[str, dict[str, list[float]]] = {name: {when: [] for when in checkouts} for name in COMMANDS}
    for _ in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            for when, checkout in checkouts.items():
                seconds[name][when].append(cpu_seconds(checkout, command))
    rows = {name: {when: round(min(found[1:]), 2) for when, found in both.items()} for name, both in seconds.items()}
    commits = {when: commit(checkout) for when, checkout in checkouts.items()}
    RESULT.write_text(json.dumps({"commits": commits, "rounds": args.rounds, "processor": processor(), "cpu_seconds": rows}, indent=1) + "\n")
    for name, both in rows.items():
        print(f"{name:40}" + "  ".join(f"{when} {value:6.2f}" for when, value in both.items()))


if __name__ == "__main__":
    main()
