"""Rows and pictures of a run to MLflow, through its own client: `[deepspeed] mlflow = { enabled = true }`."""
from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinview.errors import RecipeError, closest
from twinview.recipe.leaves import flat

KEYS = ("enabled", "tracking_uri", "experiment", "run_name")
PARAMETERS = 6000  # characters that MLflow takes of a value
MARK = ".mlflow.json"  # in the run's folder: the run of MLflow that a resumed one goes on in


def check_table(table: Mapping[str, Any]) -> None:
    """Raises RecipeError for a key that nothing takes."""
    for key in table:
        if key not in KEYS:
            raise RecipeError(f"[deepspeed] mlflow: nothing takes {key!r}.{closest(key, KEYS)}")


class MlflowLog:
    """One run of MLflow's, on rank 0.  A server that cannot be reached is an error at the start, and a line on stderr later."""

    def __init__(self, folder: Path, table: Mapping[str, Any], recipe: Mapping[str, Any], step: int) -> None:
        """`table`: of the recipe; `recipe`: as resolved, its parameters; `step`: where this sitting begins.  Raises RecipeError."""
        from mlflow import MlflowClient

        uri = table.get("tracking_uri") or None  # None: $MLFLOW_TRACKING_URI, or MLflow's own default
        try:
            self.client = MlflowClient(tracking_uri=uri)
            self.run = self._resumed(folder) if step else ""
            if not self.run:
                name = table.get("experiment", "twinview")
                known = self.client.get_experiment_by_name(name)
                experiment = known.experiment_id if known else self.client.create_experiment(name)
                self.run = self.client.create_run(experiment, run_name=table.get("run_name") or folder.resolve().name).info.run_id
                for key, value in list(flat(recipe)):
                    self.client.log_param(self.run, _name(key), json.dumps(value)[:PARAMETERS])
                (folder / MARK).write_text(json.dumps({"run": self.run}) + "\n", encoding="utf-8")
        except Exception as e:  # MLflow raises whatever its store and its transport raise
            raise RecipeError(f"[deepspeed] mlflow: {uri or 'the tracking server'} cannot be written to: {' '.join(str(e).split())[:200]}") from None

    def _resumed(self, folder: Path) -> str:
        """The run that an earlier sitting wrote to; "" where it is gone."""
        try:
            run = str(json.loads((folder / MARK).read_text(encoding="utf-8"))["run"])
            self.client.get_run(run)
            self.client.update_run(run, status="RUNNING")
        except Exception:  # gone, or of another server: a new one is begun
            return ""
        return run

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """A logged step; numbers that are not finite are left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_name(name), float(value), now, step) for name, value in values.items() if value is not None and math.isfinite(value)]
        self.client.log_batch(self.run, metrics=found)

    def pictures(self, step: int, pictures: Mapping[str, Any]) -> None:
        """PIL images, as artifacts `pictures/NAME/step-000100.png`."""
        for name, picture in pictures.items():
            self.client.log_image(self.run, picture, f"pictures/{_name(name)}/step-{step:06d}.png")

    def close(self, ended: str) -> None:
        """Say how this sitting ended: FINISHED, KILLED (told to end, it may go on) or FAILED."""
        self.client.set_terminated(self.run, status=ended)


def _name(text: str) -> str:
    """What MLflow takes as a name: letters, digits, and `_ - . / ` and blanks."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in text)
