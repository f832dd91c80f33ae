"""The page of a comparison: recipes, curves on one axis, scores."""
from __future__ import annotations

from twinview.analysis.report.compare import SAID, Comparison, difference, spread
from twinview.analysis.report.curves import compared, curves_of
from twinview.analysis.report.page import CURVES, Section, page, table


def compare_page(found: Comparison) -> str:
    """The HTML of a comparison; runs of one group have one color."""
    letters = [chr(65 + n) for n in range(len(found.groups))]
    members = [(n, group, run) for n, group in enumerate(found.groups) for run in group.runs]
    runs = [(f"{letters[n]}, seed {run.seed}", n, curves_of(run.rows, run.evaluations)) for n, _, run in members]
    listed = [
        [letters[n], group.name, run.seed, run.state, f"{run.step}/{run.steps}" if run.steps else run.step, run.folder] for n, group, run in members
    ]
    head = table(["", "recipe", "seed", "state", "step", "folder"], listed, (2, 4))
    sections = []
    if found.lines:
        names = ["score", *letters, *(f"{letter} − A" for letter in letters[1:])]
        rows = []
        for line in found.lines:
            told = [difference(d) for d in line.differences[1:]]
            rows.append([line.score, *map(spread, line.values), *told])
        chance = f"Of {len(rows) * max(len(letters) - 1, 0)} differences one in twenty is expected to look like more than chance without being it."
        sections.append(Section("Scores", table(names, rows) + f'<p class="faint">{SAID} {chance}</p>'))
    sections.append(Section("Curves", CURVES))
    if found.keys:
        sections.append(Section("Where the recipes differ", table(["key", *letters], [[key, *values] for key, values in found.keys.items()])))
    return page(" and ".join(group.name for group in found.groups[:4]), head, sections, compared(runs))
