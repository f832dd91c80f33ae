"""Small runs in a process of their own, on some ranks: `python -m twinview.testing.driver JOBS.json`.

A job that is refused leaves the line in a file beside its folder, and the next one is tried.  A job with `state` leaves each rank's state at its end.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinview.errors import TwinviewError

LIMIT = 600  # seconds


def on_ranks(ranks: int, jobs: Sequence[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Train `jobs` (name, recipe as tables, folder, resume, state) one after another on `ranks` processes; name -> why it was refused, or "".

    Raises RuntimeError with what the process said where it failed as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "jobs.json"
    path.write_text(json.dumps({"ranks": ranks, "jobs": jobs}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):  # of this process, which has trained
        environment.pop(name, None)
    command = [sys.executable, "-m", "twinview.testing.driver", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return {job["name"]: _refusal(Path(job["folder"])) for job in jobs}


def states_of(folder: Path, ranks: int) -> list[dict[str, Tensor]]:
    """What the `state` heads held on each rank at the end of a job with `state`, by name."""
    return [torch.load(_state(folder, rank), weights_only=True) for rank in range(ranks)]


def _state(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}.state-{rank}")


def _beside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".refused")


def _refusal(folder: Path) -> str:
    return _beside(folder).read_text() if _beside(folder).is_file() else ""


def main(path: str) -> None:
    """Train every job of the file."""
    from twinview.data.loading.factory import Factory
    from twinview.engine.distributed.launch import launch
    from twinview.engine.setup import TrainSetup
    from twinview.engine.train import train
    from twinview.recipe import from_table

    table = json.loads(Path(path).read_text())

    def work() -> int:
        for job in table["jobs"]:
            folder = Path(job["folder"])

            def keep_state(setup: TrainSetup, _: Factory, folder: Path = folder) -> None:
                torch.save(setup.model.state.state_dict(), _state(folder, setup.ranks.rank))

            try:
                on_end = keep_state if job.get("state") else None
                train(from_table(job["recipe"]), folder, resume=job.get("resume", False), command="twinview.testing", on_end=on_end)
            except TwinviewError as e:
                _beside(folder).write_text(str(e))
        return 0

    launch(table["ranks"], work, "cpu")


if __name__ == "__main__":
    main(*sys.argv[1:])
