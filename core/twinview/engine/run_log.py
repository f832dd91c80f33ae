"""What a run tells while it goes on: rows of metrics.jsonl, DeepSpeed's monitors, a progress bar or lines in a log."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twinview.engine.collapse import CollapseWatch
from twinview.engine.metrics import Metrics, read_metrics
from twinview.engine.mlflow_log import MlflowLog
from twinview.errors import Preempted
from twinview.progress import Bar

OnProgress = Callable[[dict[str, Any]], None]


class RunLog:
    """The log of rank 0; on the other ranks every method does nothing."""

    def __init__(
        self, folder: Path, *, first: bool, step: int, steps: int, steps_per_epoch: int, share: float, then: str = "", monitors: Any = None,
        on_progress: OnProgress | None = None, mlflow: MlflowLog | None = None,
    ) -> None:
        """`first`: this is rank 0; `step`, `share`: where this sitting begins; `then`: what comes behind the last step; `monitors`: DeepSpeed's.

        `mlflow`: where rows go besides.
        """
        self.path, self.monitors, self.on_progress = folder / "metrics.jsonl", monitors, on_progress
        self.mlflow = mlflow
        self.last: dict[str, Any] = {}  # the newest row of this sitting
        self._epoch, self._collapse = steps_per_epoch, CollapseWatch()
        self._metrics = Metrics(self.path, upto=step) if first else None
        self._bar = Bar(steps, step, share, then) if first else None

    def write(self, step: int, values: Mapping[str, float], scores: Mapping[str, float], share: float) -> None:
        """Add the row of a step."""
        if self._metrics is None or self._bar is None:
            return
        self.last = {"step": step, "epoch": (step - 1) // self._epoch, **values, **scores}
        self._metrics.write(self.last)
        if self.monitors:
            self.monitors.write_events([(name, value, step) for name, value in {**values, **scores}.items()])
        self._to_mlflow(lambda log: log.row(step, {**values, **scores}))
        self.say(self._collapse.see(self.last))
        self._bar.tell(self.last, share)
        if self.on_progress:
            self.on_progress(self.last)

    def pictures(self, step: int, pictures: Mapping[str, Any]) -> None:
        """Hand pictures (PIL) to the monitors that take them: TensorBoard and W&B."""
        if self._metrics is None or not pictures:
            return
        self._to_mlflow(lambda log: log.pictures(step, pictures))
        board = getattr(getattr(self.monitors, "tb_monitor", None), "summary_writer", None)
        if board is not None:
            for name, picture in pictures.items():
                board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            board.flush()
        if getattr(getattr(self.monitors, "wandb_monitor", None), "enabled", False):
            from wandb import Image, log

            log({name: Image(picture) for name, picture in pictures.items()}, step=step)

    def _to_mlflow(self, tell: Callable[[MlflowLog], None]) -> None:
        """What MLflow refuses, or cannot be reached for, costs its rows and not the run."""
        if self.mlflow is not None:
            try:
                tell(self.mlflow)
            except Exception as e:  # whatever its transport raises
                self.say(f"MLflow: {' '.join(str(e).split())[:200]}")

    def has(self, step: int) -> bool:
        """Whether the file holds the row of a step."""
        return any(row["step"] == step for row in read_metrics(self.path))

    def newest(self) -> dict[str, Any]:
        """The last row, of this sitting or of an earlier one."""
        return self.last or list(read_metrics(self.path))[-1]

    def say(self, line: str) -> None:
        """A line of its own; nothing where it is empty."""
        if self._bar and line:
            self._bar.say(line)

    def moved(self, step: int, share: float) -> None:
        """After every step."""
        if self._bar:
            self._bar.update(step, share)

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        if self._metrics:
            self._metrics.sync()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        told = kind is not None and issubclass(kind, (Preempted, KeyboardInterrupt))
        self.close("FINISHED" if kind is None else "KILLED" if told else "FAILED")

    def close(self, ended: str) -> None:
        """Leave the terminal as it was, and close the file.  `ended`: MLflow's word for how."""
        if self._bar:
            self._bar.close()
        if self._metrics:
            self._metrics.close()
        self._to_mlflow(lambda log: log.close(ended))
