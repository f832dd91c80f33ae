"""Tables of rows: every score beside raw pixels, the random start and supervision, with differences paired by seed."""
from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proof.rows import Row
from proof.score import unpack
from proof.stats import Difference, bootstrap, bootstrap_miou, deviation, paired, seeds_needed

PROBES = ("linear", "knn", "miou", "cluster")  # cluster: mIoU of unsupervised segmentation
PIXELS = ("pixels", "centered")  # rows of raw pixels: as they lie, and less the mean of ImageNet's colors, which changes what is near by cosine
VAL_IMAGES = 3000  # of CIFAR's val

Methods = dict[str, dict[int, Row]]  # rows by method and seed
ByCommit = Mapping[str, Sequence[Row]]  # the oldest commit first


def raw(probe: str, known: Collection[str]) -> str:
    """The floor of raw pixels for a probe: to nearest neighbors by cosine they are better without the mean color, where that row was made."""
    return "centered" if probe == "knn" and "centered" in known else "pixels"


def by_method(rows: Sequence[Row]) -> Methods:
    """Rows by method and seed; of several, the last.  A method that was trained for several numbers of steps stands there once for each, and once
    more for each set of overrides that it was run with.

    What a segmentation run says of k-means on its random start and on raw pixels stands there too.
    """
    found: Methods = {}
    budgets: dict[str, set[Any]] = {}
    for row in rows:
        budgets.setdefault(row["method"], set()).add(row.get("steps"))
    for row in rows:
        name = row["method"] if len(budgets[row["method"]]) == 1 else f"{row['method']}, {row.get('steps')} steps"
        name = ", ".join([name, *(f"{key}={value}" for key, value in (row.get("overrides") or {}).items() if key != "run.steps")])
        found.setdefault(name, {})[row["seed"]] = row
    for method, of in list(found.items()):
        for seed, row in of.items():
            for other, name in (("", method), ("random/", "random"), ("pixels/", "pixels")):
                score = row.get(f"score/cluster/{other}miou")
                if score is not None:
                    there = found.setdefault(name, {})
                    there[seed] = {"method": name, "seed": seed, **there.get(seed, {}), "cluster": score}
    return found


def table(rows: Sequence[Row], probes: Sequence[str] = PROBES) -> list[str]:
    """A Markdown table for each probe that the rows have, methods in the order of their means."""
    lines: list[str] = []
    methods = by_method(rows)
    for probe in (p for p in probes if any(p in row for of in methods.values() for row in of.values())):
        scores = {m: {s: float(r[probe]) for s, r in of.items() if probe in r} for m, of in methods.items() if m != "centered" or probe == "knn"}
        scores = dict(sorted(((m, s) for m, s in scores.items() if s), key=lambda pair: -statistics.fmean(pair[1].values())))
        lines += ["", f"| {probe} | scores by seed | mean ± deviation | above random start | above raw pixels | CPU s |", "|---|---|---|---|---|---|"]
        for method, found in scores.items():
            listed = ", ".join(f"{found[seed]:.1f}" for seed in sorted(found))
            floors = []
            for other in ("random", raw(probe, scores)):
                base = scores.get(other)
                floors.append(shown(difference(found, base, constant=other in PIXELS)) if base and method != other else "")
            seconds = [float(row["cpu_seconds"]) for row in methods[method].values() if "cpu_seconds" in row]
            cost = f"{statistics.fmean(seconds):.0f}" if seconds else ""
            lines.append(f"| {method} | {listed} | {mean(found)} | {floors[0]} | {floors[1]} | {cost} |")
    return lines


def mean(scores: Mapping[int, float]) -> str:
    """`42.4 ± 0.5`, of scores by seed; of one alone without a deviation."""
    values = list(scores.values())
    return f"{statistics.fmean(values):.1f}" + (f" ± {deviation(values):.1f}" if len(values) > 1 else "")


def difference(a: dict[int, float], b: dict[int, float], *, constant: bool = False) -> Difference | None:
    """`a` minus `b`, paired by seed; None without a seed in common.  `constant`: `b` of one seed stands for every seed, as raw pixels do."""
    if constant and len(b) == 1:
        return paired(a, next(iter(b.values())))
    return paired(a, b) if set(a) & set(b) else None


def shown(found: Difference | None) -> str:
    """`+3.2 ± 0.4 [2.2, 4.2] (8.0)`: mean, deviation of the paired differences, 95 % interval, mean in deviations."""
    if found is None:
        return ""
    if found.seeds == 1:
        return f"{found.mean:+.1f}"
    return f"{found.mean:+.1f} ± {found.deviation:.1f} [{found.low:+.1f}, {found.high:+.1f}] ({found.deviations:.1f})"


def comparison(name: str, other: str, a: dict[int, Row], b: dict[int, Row]) -> list[str]:
    """What `compare` says of each probe, a line each."""
    lines = []
    for probe in PROBES:
        of_a, of_b = ({seed: row for seed, row in of.items() if probe in row} for of in (a, b))
        if other in PIXELS and len(of_b) == 1:
            of_b = dict.fromkeys(of_a, next(iter(of_b.values())))  # the same for every seed
        if set(of_a) & set(of_b):
            lines.append(_line(name, other, probe, compare(of_a, of_b, probe)))
    return lines or [f"{name} and {other} have no seed in common: {sorted(a)} and {sorted(b)}"]


def of_newest(by_commit: ByCommit, task: str, names: Collection[str]) -> tuple[str, Methods]:
    """The newest commit that has rows of all these methods of a task, and the rows of all of the task that it has: rows of two commits are not of
    one experiment.  "" and none where there is no such.
    """
    for at, rows in reversed(list(by_commit.items())):
        methods = by_method([row for row in rows if row["task"] == task])
        if set(names) <= methods.keys():
            return at, methods
    return "", {}


def compared(by_commit: ByCommit, task: str, name: str, other: str) -> list[str]:
    """`comparison` in the rows of the newest commit that has both methods."""
    at, methods = of_newest(by_commit, task, (name, other))
    if methods:
        return [f"commit {at}", *comparison(name, other, methods[name], methods[other])]
    known = {method for rows in by_commit.values() for method in by_method([row for row in rows if row["task"] == task])}
    return [f"no commit has rows of both {name} and {other}. There is: {', '.join(sorted(known))}"]


def newest(by_commit: ByCommit, task: str) -> list[Row]:
    """Of each method of a task the rows of the newest commit that has it."""
    found: dict[str, list[Row]] = {}
    for rows in by_commit.values():
        mine = [row for row in rows if row["task"] == task]
        found |= {method: [row for row in mine if row["method"] == method] for method in dict.fromkeys(row["method"] for row in mine)}
    return [row for rows in found.values() for row in rows]


def with_curves(by_commit: ByCommit, task: str) -> list[Row]:
    """The rows of a task of the newest commit of which earlier checkpoints were scored; none if there is no such."""
    for rows in reversed(list(by_commit.values())):
        if any(row.get("curve") for row in rows if row["task"] == task):
            return [row for row in rows if row["task"] == task]
    return []


def _line(name: str, other: str, probe: str, found: dict[str, Any]) -> str:
    seeds = "{mean:+.1f} ± {deviation:.1f}, over seeds [{low:+.1f}, {high:+.1f}]"
    images = "" if probe == "cluster" else "over {also}images [{images_low:+.1f}, {images_high:+.1f}]"
    parts = [seeds, images.format(also="seeds and ", **found)] if found["seeds"] > 1 else ["{mean:+.1f}", images.format(also="", **found)]
    needed = f"; one point needs {found['seeds_for_one_point']} paired seeds" if found["seeds_for_one_point"] else ""
    if found["seeds"] == 1:
        needed = "; one seed says nothing of the spread"
    text = ", ".join(filter(None, parts)).format(**found)
    return f"{probe}: {name} - {other} on {found['seeds']} seed{'s' * (found['seeds'] > 1)}: {text}{needed}"


def compare(a: dict[int, Row], b: dict[int, Row], probe: str) -> dict[str, Any]:
    """Two methods on the seeds that both have: paired difference over seeds, and the interval over seeds and images together."""
    seeds = sorted(set(a) & set(b))
    found = paired({s: float(a[s][probe]) for s in seeds}, {s: float(b[s][probe]) for s in seeds})
    if probe == "cluster":
        low = high = float("nan")  # its images are not kept apart
    elif probe == "miou":
        low, high = bootstrap_miou(*(confusions([of[s] for s in seeds]) for of in (a, b)))
    else:
        right = [np.stack([unpack(of[s][f"{probe}_right"], VAL_IMAGES).numpy().astype(float) for s in seeds]) for of in (a, b)]
        low, high = (100 * x for x in bootstrap(right[0] - right[1], [[i] for i in range(VAL_IMAGES)]))
    needed = seeds_needed(found.deviation) if found.deviation > 0 else 0
    return {**found._asdict(), "images_low": low, "images_high": high, "seeds_for_one_point": needed}


def confusions(rows: Sequence[Row]) -> NDArray[np.int64]:
    """[seeds, blocks, classes, classes]."""
    counts = np.array([row["confusions"] for row in rows], np.int64)
    classes = round(counts.shape[-1] ** 0.5)
    return counts.reshape(*counts.shape[:2], classes, classes)
