"""Tables of scores."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

LONGER = "Train longer (run.steps, run.epochs); docs/tutorial.md tells a run that is young from one that collapses."

def score_table(scores: Mapping[str, float]) -> list[str]:
    """Scores `probe/measure` and `probe/baseline/measure` as a table: a row for each network, a column for each measure."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in scores.items():
        *probe, measure = name.split("/")
        if measure == "collapsed":
            continue  # said in words
        who = probe[1] if len(probe) > 1 else "trained"
        rows.setdefault(who, {})[f"{probe[0] if probe else ''} {measure}".strip()] = value
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    if not rows:
        return []
    width = max(len(r) for r in rows)
    lines = ["  ".join([" " * width, *columns])]
    for who, row in rows.items():
        lines.append("  ".join([f"{who:<{width}}", *(f"{row[c]:>{len(c)}.3f}" if c in row else " " * len(c) for c in columns)]))
    return [*lines, ""]


def signs(collapsed: Sequence[str], below: Sequence[str]) -> list[str]:
    """What is wrong with the scores of a run, in words: signs of collapse, and scores below those of the random start."""
    lines = [f"COLLAPSED   {line}" for line in collapsed] + [f"BELOW START {line}" for line in below]
    return [*lines, *([f"            {LONGER}"] if below else []), *([""] if lines else [])]
