"""Steps that are left out because their loss or gradient is not finite: what is told of them, and when it is too much."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from twinview.engine.distributed.process import gathered, on_first
from twinview.engine.loss_scale import LossScale
from twinview.errors import TwinviewError
from twinview.files import write_text
from twinview.values import Progress

NAMED = 8  # images in a message


class Micro(NamedTuple):
    """A micro-batch of a step on this rank."""

    keys: tuple[str, ...]
    loss: Tensor  # scalar, detached
    terms: dict[str, Tensor]


class SkippedStep(NamedTuple):
    """A step that moved nothing, as every rank knows it."""

    step: int  # from 1
    epoch: int
    overflow: bool  # of a gradient scaled for fp16: nothing is wrong, and the scale has been halved
    micros: tuple[dict[str, Any], ...]  # rank, loss, terms, keys of each micro-batch

    @property
    def why(self) -> str:
        """`the loss is nan (byol nan)`, of the first micro-batch where it is, or the gradient."""
        worst = next((m for m in self.micros if not math.isfinite(m["loss"])), None)
        if worst is None:
            return f"the gradient is not finite, and the loss is ({_terms(self.micros[0]['terms'])})"
        return f"the loss is {worst['loss']} ({_terms(worst['terms'])})"

    @property
    def keys(self) -> list[str]:
        """Of the micro-batches whose loss is not finite, or of all where every loss is."""
        guilty = [m for m in self.micros if not math.isfinite(m["loss"])] or self.micros
        return [key for m in guilty for key in m["keys"]]


def leave_out(progress: Progress, micros: Iterable[Micro], scale: LossScale) -> SkippedStep:
    """Build the report of a skipped step.  Collective: every rank calls it and gets the same report."""
    mine: list[dict[str, Any]] = [{"loss": float(m.loss), "terms": {k: float(v) for k, v in m.terms.items()}, "keys": list(m.keys)} for m in micros]
    every: tuple[dict[str, Any], ...] = tuple({"rank": rank, **m} for rank, ms in enumerate(gathered(mine)) for m in ms)
    overflow = all(math.isfinite(m["loss"]) for m in every) and scale.lower()
    return SkippedStep(progress.step + 1, progress.epoch, overflow, every)


class SkippedSteps:
    """The steps of a run that were left out, and how many more may be."""

    def __init__(self, allowed: int, folder: Path | None = None, counted: Mapping[str, int] | None = None) -> None:
        """`folder`: of the run, for the keys; `counted`: the state of an earlier sitting."""
        self.allowed, self.folder = allowed, folder
        self.bad, self.overflows = (counted or {}).get("bad", 0), (counted or {}).get("overflows", 0)

    def add(self, out: SkippedStep) -> str:
        """Count a step; a line to say, or nothing of an overflow.  Every rank calls it.  Raises TwinviewError on all where it is one too many."""
        if out.overflow:
            self.overflows += 1
            return ""
        self.bad += 1
        written = on_first(lambda: self._write(out)) if self.folder else ""
        images = ", ".join(out.keys[:NAMED]) + (f" and {len(out.keys) - NAMED} more" if len(out.keys) > NAMED else "")
        seen = f"the images were {images}{f' ({written})' if written else ''}"
        if self.bad > self.allowed:
            more = f" after {self.allowed} that were left out" if self.allowed else ""
            raise TwinviewError(f"step {out.step}: {out.why}{more}. Lower [optimizer] lr or lengthen the warm-up; {seen}.")
        return f"WARNING step {out.step}: {out.why}. Left out, {self.bad} of {self.allowed} that may be; {seen}."

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"bad": self.bad, "overflows": self.overflows}

    def numbers(self) -> dict[str, float]:
        """For a logged row, once there is something to tell."""
        return {f"{name}_steps": float(n) for name, n in (("bad", self.bad), ("overflow", self.overflows)) if n}

    def _write(self, out: SkippedStep) -> str:
        """Everything that is known of the step, for whoever wants to look at its images."""
        assert self.folder is not None
        path = self.folder / "nonfinite" / f"step-{out.step:06d}.json"
        path.parent.mkdir(exist_ok=True)
        micros = [{**m, "loss": _number(m["loss"]), "terms": {k: _number(v) for k, v in m["terms"].items()}} for m in out.micros]
        told = {"step": out.step, "epoch": out.epoch, "why": out.why, "micro_batches": micros}
        write_text(path, json.dumps(told, indent=1) + "\n")
        return str(path)


def _terms(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in terms.items())


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
