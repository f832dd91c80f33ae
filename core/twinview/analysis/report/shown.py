"""A run as a notebook shows it."""
from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from twinview.analysis.report.page import table, text

PICTURES, WIDTH = 4, 900  # that are shown, and their width in pixels


def run_html(run: Any) -> str:
    """A table of what a run (`runs.RunInfo`) has come to, and its pictures."""
    step = f"{run.step} of {run.steps}" if run.steps else str(run.step)
    facts = [("run", str(run.folder)), ("state", run.state), ("step", step), ("loss", number(run.loss))]
    facts += [(name, f"{value:.2f}") for name, value in run.scores.items()]
    pictures = sorted((run.folder / "pictures").glob("*.png"))[:PICTURES]
    return table(["", ""], facts) + "".join(_picture(path) for path in pictures)


def _picture(path: Path) -> str:
    code = base64.b64encode(path.read_bytes()).decode()
    return f'<p>{text(path.stem)}</p><img alt="{text(path.stem)}" style="max-width:{WIDTH}px" src="data:image/png;base64,{code}">'


def number(value: float | None) -> str:
    """Four digits behind the point, nothing for None."""
    return "" if value is None else f"{value:.4f}"
