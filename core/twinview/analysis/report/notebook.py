"""How runs show themselves in a notebook: a small table and the pictures."""
from __future__ import annotations

from collections.abc import Iterable

import attrs

from twinview.analysis.report.page import table
from twinview.analysis.report.runs import RunInfo
from twinview.analysis.report.shown import number, run_html
from twinview.engine.train import RunResult


@attrs.frozen(kw_only=True)
class ShownResult(RunResult):
    """A run's result, which a notebook shows as a table of scores and the pictures."""

    @classmethod
    def of(cls, result: RunResult) -> ShownResult:
        """The same result."""
        return cls(**{field.name: getattr(result, field.name) for field in attrs.fields(RunResult)})

    def _repr_html_(self) -> str:
        return run_html(RunInfo(self.folder))


class RunList(list[RunInfo]):
    """Runs, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        rows = [(r.folder, r.state, f"{r.step}/{r.steps}" if r.steps else r.step, r.recipe, r.seed, number(r.loss), _scores(r)) for r in self]
        return table(["run", "state", "step", "recipe", "seed", "loss", "scores"], rows, (2, 4, 5))


def _scores(run: RunInfo) -> str:
    first: Iterable[tuple[str, float]] = list(run.main_scores().items())[:3]
    return ", ".join(f"{name} {value:.1f}" for name, value in first)
