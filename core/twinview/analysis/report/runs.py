"""What a run's folder says without its network being loaded: state, steps, losses, scores, age."""
from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import attrs

from twinview.analysis.scores import joined, read_scores
from twinview.engine.metrics import read_metrics, table_of
from twinview.engine.run_lock import holder
from twinview.errors import CheckpointError, closest
from twinview.scores import NEITHER as NEITHER

State = Literal["running", "finished", "stopped", "empty"]
VALUED = ("--run", "--ranks", "--seeds")  # options of `twinview train` that have a word behind them


@attrs.define(slots=False, eq=False)
class RunInfo:
    """A run, finished or under way; everything is read when it is first asked for, and once."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The logged steps, in order; numbers that were not finite are None."""
        return list(read_metrics(self.folder / "metrics.jsonl"))

    @cached_property
    def table(self) -> dict[str, Any]:
        """The recipe as it was resolved; nothing where its file is damaged."""
        try:
            return tomllib.loads((self.folder / "recipe.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the run was made with; nothing where its file is damaged."""
        try:
            found = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def sittings(self) -> list[dict[str, Any]]:
        """Its starts, the first one first."""
        found = self.manifest.get("sittings", [])
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """What `twinview evaluate` kept, in order: the step, and each score by its name, those of the floors as `knn/random/top1`."""
        try:
            rows = read_scores(self.folder / "scores.json")
        except CheckpointError:
            return []
        return [
            {
                **{"use": row.get("use"), "name": row.get("name"), "step": row.get("checkpoint", {}).get("step")},
                **{"own": not row.get("overrides"), **joined(row)},
            }
            for row in rows
        ]

    @property
    def recipe(self) -> str:
        """The recipe as the command named it; the loss where no command says it."""
        words = str(self.sittings[-1].get("command", "")).split() if self.sittings else []
        if "train" in words[:-1]:
            said = words[words.index("train") + 1 :]
            named = next((w for before, w in pairwise(["", *said]) if not w.startswith("-") and "=" not in w and before not in VALUED), "")
            if named and re.fullmatch(r"[\w./-]+", named):
                return Path(named).stem if named.endswith(".toml") else named
        losses = self.table.get("loss", [])
        return "+".join(str(one.get("use", "?")) for one in losses) if isinstance(losses, list) and losses else "?"

    @property
    def seed(self) -> int | None:
        """Of the recipe."""
        return _run(self.table).get("seed", 0) if self.table else None

    @property
    def step(self) -> int:
        """The last one that was logged or saved."""
        saved = [int(p.name.removeprefix("step-")) for p in (self.folder / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdigit()]
        return max([self.rows[-1]["step"] if self.rows else 0, *saved])

    @property
    def steps(self) -> int:
        """Of the whole run; 0 where it is measured in hours, or where the folder does not say."""
        run, images = _run(self.table), self.manifest.get("data", {}).get("images", 0)
        if run.get("steps"):
            return int(run["steps"])
        batch = run.get("batch_size", 0)
        return round(run["epochs"] * max(1, images // batch)) or 1 if run.get("epochs") and batch and images else 0

    @cached_property
    def holder(self) -> dict[str, Any] | None:
        """The process that trains in the folder now: host, process, since, command."""
        return holder(self.folder)

    @property
    def state(self) -> State:
        """Whether it runs now, has made all its steps, was stopped before, or has made none."""
        if self.holder:
            return "running"
        if not self.step:
            return "empty"
        if self.steps:
            return "finished" if self.step >= self.steps else "stopped"
        return "finished" if any((self.folder / "pictures").glob("*.png")) else "stopped"  # in hours: pictures come at its end

    @property
    def touched(self) -> float:
        """When it last wrote a row, seconds since 1970; of a folder without rows, when it was made."""
        for name in ("metrics.jsonl", "manifest.json", "recipe.toml"):
            if (self.folder / name).is_file():
                return (self.folder / name).stat().st_mtime
        return self.folder.stat().st_mtime

    @property
    def loss(self) -> float | None:
        """Of the last row."""
        return self.rows[-1].get("loss") if self.rows else None

    @property
    def scores(self) -> dict[str, float]:
        """The newest of each score by name, `knn/top1`, and what `twinview evaluate` said of the last step with the run's own options.

        A score whose newest value is no number is left out.
        """
        found: dict[str, float | None] = {}
        for row in self.rows:
            found |= {k.removeprefix("score/"): v for k, v in row.items() if k.startswith("score/")}
        for row in self.evaluations:
            if row["own"] and row["step"] in (None, self.step):
                found |= {k: v for k, v in row.items() if "/" in k}
        return {k: v for k, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}

    @property
    def metrics(self) -> Any:
        """The rows as a table: a pandas DataFrame where pandas is installed, else a dict of lists, a list for each column."""
        return table_of(self.rows)

    def main_scores(self) -> dict[str, float]:
        """The first measure of each evaluation, without its baselines."""
        found: dict[str, float] = {}
        for name, value in self.scores.items():
            words = name.split("/")
            if len(words) == 2 and words[1] not in NEITHER and not any(other.startswith(words[0] + "/") for other in found):
                found[name] = value
        return found

    def as_row(self) -> dict[str, Any]:
        """What `twinview runs --json` says."""
        touched = datetime.datetime.fromtimestamp(self.touched, datetime.UTC).isoformat(timespec="seconds")
        return {
            "run": str(self.folder), "state": self.state, "step": self.step, "steps": self.steps or None, "recipe": self.recipe, "seed": self.seed,
            "loss": self.loss, "scores": self.scores, "touched": touched,
        }

    def _repr_html_(self) -> str:
        """A notebook's view: a small table and the pictures."""
        from twinview.analysis.report.shown import run_html

        return run_html(self)


def find_runs(folder: Path) -> list[RunInfo]:
    """The runs in a folder, however deep, the one that wrote last first.  Raises CheckpointError where there is no folder."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder of runs.")
    found = [RunInfo(Path(where)) for where, below, files in _walk(folder) if "recipe.toml" in files and "checkpoints" in below]
    return sorted(found, key=lambda run: -run.touched)


def open_run(folder: Path) -> RunInfo:
    """One run.  Raises CheckpointError where the folder is none."""
    if not (folder / "recipe.toml").is_file():
        there = [str(run.folder) for run in find_runs(folder.parent)] if folder.parent.is_dir() and not folder.exists() else []
        raise CheckpointError(f"{folder}: is no run's folder: it holds no recipe.toml.{closest(str(folder), there) if there else ''}")
    return RunInfo(folder)


def delete(run: RunInfo) -> None:
    """Remove a run's folder.  Raises CheckpointError where it is at work."""
    if run.holder:
        who = "process {process} on {host}".format(**{"process": "?", "host": "?", **run.holder})
        raise CheckpointError(f"{run.folder}: is at work now: {who}. End it first.")
    shutil.rmtree(run.folder)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum((Path(where) / name).lstat().st_size for where, _, files in os.walk(folder) for name in files)


def age(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `2 days`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def runs_table(runs: Sequence[RunInfo]) -> list[str]:
    """Lines for a terminal."""
    rows = [("run", "state", "step", "recipe", "seed", "loss", "scores", "age")]
    for run in runs:
        of = f"{run.step}/{run.steps}" if run.steps else str(run.step)
        scores = ", ".join(f"{name} {value:.1f}" for name, value in list(run.main_scores().items())[:3])
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        rows.append((str(run.folder), run.state, of, run.recipe, str(run.seed), loss, scores, age(time.time() - run.touched)))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(word.rjust(w) if c in (2, 4, 5) else word.ljust(w) for c, (word, w) in enumerate(zip(row, widths))).rstrip() for row in rows]


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, without what lies in a run."""
    for where, below, files in os.walk(folder):
        yield where, list(below), files
        below[:] = [] if "recipe.toml" in files and "checkpoints" in below else sorted(name for name in below if not name.startswith("."))


def _run(table: Mapping[str, Any]) -> dict[str, Any]:
    found = table.get("run", {})
    return found if isinstance(found, dict) else {}
