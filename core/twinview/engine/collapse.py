"""Whether a run has collapsed, by a row of its metrics."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinview.scores import direction

LEAST_SPREAD = 0.02  # of pooled features, about 1 where they fill the sphere: below it all images have one and the same feature
LEAST_RANK = 1.5  # effective, where it is logged: of at least eight images at once.  Below it features lie along one line
ALARM = 3  # logged rows in a row that show a sign: one odd batch is no collapse


def collapses(row: Mapping[str, Any]) -> list[str]:
    """A line for each sign: an evaluation's score `collapsed` above 0, and features of the online branch that hardly differ."""
    found = []
    for name, value in row.items():
        *words, last = name.removeprefix("score/").split("/")
        if name.startswith("score/") and last == "collapsed" and len(words) == 1 and value:
            found.append(f"{words[0]}: fewer than two clusters are left")
    return found + _features(row)


def below_start(scores: Mapping[str, float]) -> list[str]:
    """A line for each score that is worse than the same network's at its random start; entropy, which may well fall, is not judged."""
    found = []
    for name, value in scores.items():
        *probe, measure = name.split("/")
        start = scores.get("/".join([*probe, "random", measure])) if len(probe) == 1 else None
        if start is not None and (value - start) * direction(name) < 0 and measure != "entropy":
            found.append(f"{' '.join(probe)} {measure} is {value:.3f}, and {start:.3f} at the random start")
    return found


def _features(row: Mapping[str, Any]) -> list[str]:
    spread, rank = row.get("spread/online"), row.get("erank/online")
    if spread is not None and spread < LEAST_SPREAD:
        return [f"features of different images are all but equal (spread {spread:.3f})"]
    if rank is not None and rank < LEAST_RANK:
        return [f"features of different images differ along one line alone (effective rank {rank:.2f})"]
    return []


class CollapseWatch:
    """Looks at the rows of a run as they come."""

    def __init__(self) -> None:
        self._rows = 0

    def see(self, row: Mapping[str, Any]) -> str:
        """A line to say at the ALARM-th row in a row whose features have collapsed; once, until they have recovered.

        Rows that tell nothing of the features, of an evaluation between two logged steps, are passed over.
        """
        if not {"spread/online", "erank/online"} & row.keys():
            return ""
        signs = _features(row)
        self._rows = self._rows + 1 if signs else 0
        if self._rows != ALARM:
            return ""
        return f"WARNING step {row['step']}: {signs[0]}, in {ALARM} logged rows running. The run may have collapsed."
