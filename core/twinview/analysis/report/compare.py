"""Runs beside one another: where their recipes differ, their scores over seeds, and whether a difference is more than chance."""
from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from twinview.analysis.report.runs import RunInfo
from twinview.analysis.report.statistics import Difference, deviation, paired
from twinview.engine.resumable import may_change
from twinview.recipe.leaves import flat
from twinview.scores import NEITHER

SEED = "run.seed"
SAID = "± is the standard deviation over seeds; differences are paired by seed, with the 95 % interval of their mean (Student's t)."


@attrs.frozen
class Group:
    """Runs of one recipe that differ in their seed at most, and in keys that change nothing of what is learned."""

    name: str
    runs: list[RunInfo]
    leaves: Mapping[str, Any]  # of the recipe, by dotted key

    def scores(self, name: str) -> dict[int, float]:
        """A score by seed; of several runs of one seed the one that wrote last."""
        found: dict[int, float] = {}
        for run in sorted(self.runs, key=lambda run: run.touched):
            if name in run.scores and run.seed is not None:
                found[run.seed] = run.scores[name]
        return found


@attrs.frozen
class Line:
    """A score of every group, and each group against the first."""

    score: str
    values: list[dict[int, float]]  # of each group, by seed
    differences: list[Difference | None]  # to the first group; None for that one itself, and where no seed is in both


@attrs.frozen(kw_only=True)
class Comparison:
    """What `twinview compare` says."""

    groups: list[Group]
    keys: dict[str, list[str]]  # in which the recipes differ -> what each group has there, as JSON
    lines: list[Line]

    def text(self) -> list[str]:
        """For a terminal."""
        found = []
        for n, group in enumerate(self.groups):
            seeds = ", ".join(str(run.seed) for run in group.runs)
            states = ", ".join(dict.fromkeys(run.state for run in group.runs))
            many = "s" * (len(group.runs) > 1)
            found.append(f"{chr(65 + n)}  {group.name}: {len(group.runs)} run{many}, seed{many} {seeds} ({states})")
        if self.keys:
            found += ["", *_table([["recipe", *self._letters()], *([key, *(_short(v) for v in values)] for key, values in self.keys.items())])]
        if self.lines:
            head = ["score", *self._letters(), *(f"{letter} - A" for letter in self._letters()[1:])]
            found += ["", *_table([head, *([line.score, *map(spread, line.values), *map(difference, line.differences[1:])] for line in self.lines)])]
            if len(self.groups) > 1:
                found += ["", SAID]
        return found

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "groups": [{"name": g.name, "runs": [run.as_row() for run in g.runs]} for g in self.groups],
            "differing_keys": {key: [json.loads(v) for v in values] for key, values in self.keys.items()},
            "scores": [
                {"score": line.score, "values": [{str(s): v for s, v in value.items()} for value in line.values],
                 "differences": [None if d is None else {**d._asdict(), "verdict": d.verdict} for d in line.differences]}
                for line in self.lines
            ],
        }  # fmt: skip

    def _letters(self) -> list[str]:
        return [chr(65 + n) for n in range(len(self.groups))]


def compare(runs: Sequence[RunInfo]) -> Comparison:
    """Group runs by recipe and compare the groups; runs that are under way are taken as far as they are."""
    groups: list[tuple[dict[str, Any], list[RunInfo]]] = []
    for run in runs:
        leaves = dict(flat(run.table))
        counts = {key: value for key, value in leaves.items() if key != SEED and not may_change(key)}
        for there, members in groups:
            if {key: value for key, value in there.items() if key != SEED and not may_change(key)} == counts:
                members.append(run)
                break
        else:
            groups.append((leaves, [run]))
    every = list(dict.fromkeys(key for leaves, _ in groups for key in leaves if key != SEED and not may_change(key)))
    missing = object()
    keys = {
        key: [json.dumps(leaves[key]) if key in leaves else "-" for leaves, _ in groups] for key in every
        if any(leaves.get(key, missing) != groups[0][0].get(key, missing) for leaves, _ in groups)
    }  # fmt: skip
    made = [Group(name, members, leaves) for name, (leaves, members) in zip(_names([members for _, members in groups]), groups)]
    names = dict.fromkeys(name for run in runs for name in run.scores if name.rpartition("/")[2] not in NEITHER)
    lines = []
    for name in names:
        values = [group.scores(name) for group in made]
        lines.append(Line(name, values, [None, *(paired(v, values[0]) if set(v) & set(values[0]) else None for v in values[1:])]))
    return Comparison(groups=made, keys=keys, lines=lines)


def spread(values: Mapping[int, float]) -> str:
    """`44.1 ± 0.6 (3)`; the number of seeds behind it."""
    if not values:
        return "-"
    numbers = list(values.values())
    if len(numbers) == 1:
        return f"{numbers[0]:.2f}"
    return f"{statistics.fmean(numbers):.2f} ± {deviation(numbers):.2f} ({len(numbers)})"


def difference(found: Difference | None) -> str:
    """`+1.20 [+0.40, +2.00] more than chance`."""
    if found is None:
        return "no seed in both"
    if found.seeds == 1:
        return f"{found.mean:+.2f} ({found.verdict})"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] {found.verdict}"


def _names(groups: Sequence[Sequence[RunInfo]]) -> list[str]:
    """Each group by its recipe; where two have the same, by the folder of its first run too."""
    plain = [members[0].recipe for members in groups]
    return [name if plain.count(name) == 1 else f"{name} ({members[0].name})" for name, members in zip(plain, groups)]


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(word.ljust(w) for word, w in zip(row, widths)).rstrip() for row in rows]
