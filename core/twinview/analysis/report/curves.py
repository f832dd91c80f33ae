"""Rows of runs as charts for a page: which numbers stand together, and how many points are enough."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from twinview.scores import NEITHER

POINTS = 1200  # of a curve, at most: more than a screen has columns
Point = tuple[float, float | None]


class Series(TypedDict, total=False):
    """A curve."""

    name: str
    points: list[Point]
    dash: bool  # a floor: drawn as a dashed line
    color: int  # place among the page's colors


class Chart(TypedDict, total=False):
    """Curves on one axis."""

    title: str
    note: str
    log: bool
    series: list[Series]


PLAIN: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (  # title, names or their beginnings, what it says, logarithmic
    ("Loss", ("loss", "loss/"), "the sum, and each term as its part gives it, before its weight", False),
    ("Learning rate", ("lr",), "of the recipe's own parameters", False),
    ("Momentum of the target", ("momentum",), "1: the target stands still", False),
    ("Gradient norm", ("grad_norm",), "of all parameters together, before clipping", True),
    ("Images per second", ("images_per_second",), "of all ranks", False),
    ("Wait for data", ("data_wait",), "share of the time in which the device had nothing to do", False),
    ("Memory, GB", ("memory_gb",), "most held by any rank", False),
    ("Spread of features", ("spread/",), "1: over the whole sphere, 0: every image has the same feature", False),
    ("Effective rank of features", ("erank/",), "directions that a batch uses; towards 1 is collapse", False),
)


def charts_of(rows: Sequence[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]] = ()) -> list[Chart]:
    """Charts of one run: scores first, with their floors dashed, then loss and the rest."""
    curves = curves_of(rows, evaluations)
    found = score_charts(curves)
    used = {name for name in curves if name.startswith("score/")}
    for title, starts, note, log in PLAIN:
        names = [n for n in curves if any(n == s or (s.endswith("/") and n.startswith(s)) for s in starts)]
        used |= set(names)
        if names:
            found.append(Chart(title=title, note=note, log=log, series=[Series(name=n, points=thinned(curves[n])) for n in names]))
    others: dict[str, list[str]] = {}
    for name in curves:
        if name not in used:
            others.setdefault(name.partition("/")[0], []).append(name)
    for head, names in others.items():
        found.append(Chart(title=head, note="", log=False, series=[Series(name=n, points=thinned(curves[n])) for n in names]))
    return found


def curves_of(rows: Sequence[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]] = ()) -> dict[str, list[Point]]:
    """Points (step, value) by name; scores of `twinview evaluate` too, as `score/...`."""
    curves: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and (value is None or isinstance(value, (int, float))):
                curves.setdefault(name, []).append((row["step"], value))
    for row in evaluations:
        for name, value in row.items():
            if "/" in name and isinstance(value, (int, float)) and not isinstance(value, bool) and isinstance(row.get("step"), int):
                curves.setdefault(f"score/{name}", []).append((row["step"], value))
    return {name: sorted(dict(points).items()) for name, points in curves.items() if any(value is not None for _, value in points)}


def score_charts(curves: Mapping[str, list[Point]]) -> list[Chart]:
    """A chart for each measure of each evaluation, its baselines dashed: floors that a trained network has to leave behind."""
    measures: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in curves:
        words = name.split("/")
        if words[0] == "score" and len(words) in (3, 4) and words[-1] not in NEITHER:
            measures.setdefault((words[1], words[-1]), []).append((words[2] if len(words) == 4 else "trained", name))
    found = []
    for (probe, measure), members in measures.items():
        series = [Series(name=who, points=thinned(curves[name]), dash=who != "trained") for who, name in members]
        floors = any(s["dash"] for s in series)
        found.append(Chart(title=f"{probe} {measure}", note="dashed: what it has to leave behind" if floors else "", log=False, series=series))
    return found


def compared(runs: Sequence[tuple[str, int, Mapping[str, list[Point]]]]) -> list[Chart]:
    """Charts of several runs, a curve each: (name, color, curves).  Loss terms, scores and what watches over collapse."""
    names = dict.fromkeys(name for _, _, curves in runs for name in curves)
    first = [n for n in names if n.startswith("score/") and n.count("/") == 2 and n.rpartition("/")[2] not in NEITHER]
    watched = [n for n in names if n == "loss" or n.startswith(("loss/", "spread/online", "erank/online"))]
    wanted = [*first, *watched, *(n for n in ("lr", "images_per_second") if n in names)]
    titles = {title: name for title, starts, _, _ in PLAIN for name in starts}
    plain = {name: title for title, name in titles.items()}
    return [
        Chart(
            title=plain.get(name, name.removeprefix("score/").replace("/", " ") if name in first else name), note="", log=False,
            series=[Series(name=who, points=thinned(curves[name]), color=color) for who, color, curves in runs if name in curves],
        )
        for name in wanted
    ]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points: of each stretch the lowest and the highest, so that no spike is lost."""
    kept = list(points)
    if len(kept) > POINTS:
        size, kept = -(-2 * len(points) // POINTS), [points[0]]
        for at in range(0, len(points), size):
            stretch = [p for p in points[at : at + size] if p[1] is not None] or list(points[at : at + 1])
            kept += sorted({min(stretch, key=lambda p: p[1] or 0), max(stretch, key=lambda p: p[1] or 0)})
        kept.append(points[-1])
    return [(x, None if y is None else float(f"{y:.6g}")) for x, y in dict(kept).items()]
