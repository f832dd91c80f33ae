"""Has a run collapsed?  What its last row says of it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_SPREAD = 0.02  # of pooled features, about 1 where they fill the sphere: below it all images have one and the same feature


def collapses(row: Mapping[str, Any]) -> list[str]:
    """A line for each sign: an evaluation's score `collapsed` above 0, and features of the online branch that hardly differ."""
    found = []
    for name, value in row.items():
        *words, last = name.removeprefix("score/").split("/")
        if name.startswith("score/") and last == "collapsed" and len(words) == 1 and value:
            found.append(f"{words[0]}: fewer than two clusters are left")
    spread = row.get("spread/online")
    if spread is not None and spread < LEAST_SPREAD:
        found.append(f"features of different images are all but equal (spread {spread:.3f})")
    return found
