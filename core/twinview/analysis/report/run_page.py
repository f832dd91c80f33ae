"""The page of one run: what its folder says, and the pictures that its network draws."""
from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from twinview.analysis.report.curves import charts_of
from twinview.analysis.report.page import CURVES, Picture, Section, figure_sections, page, table, text, tiles
from twinview.analysis.report.runs import RunInfo, age
from twinview.engine.collapse import below_start, collapses
from twinview.errors import TwinviewError
from twinview.recipe.leaves import flat
from twinview.scores import NEITHER

Pictures = Mapping[str, Sequence[Picture]]


def run_page(run: RunInfo, pictures: Pictures | None = None, *, notes: Sequence[str] = (), live: bool = False) -> str:
    """The HTML of a run as it stands.  `pictures`: by section; `notes`: what could not be drawn, and why."""
    sections = [Section("Curves", CURVES)] if run.rows or run.evaluations else []
    if scores := scores_table(run):
        sections.append(Section("Scores", scores))
    sections += figure_sections(pictures or {})
    if notes:
        sections.append(Section("Not drawn", "".join(f"<p>{text(note)}</p>" for note in notes)))
    sections += [Section("Recipe", recipe_html(run)), Section("How it was made", made_html(run))]
    return page(run.name, head(run), sections, charts_of(run.rows, run.evaluations), live=live)


def head(run: RunInfo) -> str:
    """State, how far, the newest numbers, what is wrong."""
    of = f"step {run.step:,} of {run.steps:,}" if run.steps else f"step {run.step:,}"
    last = f"{of}, wrote last {age(time.time() - run.touched)} ago ({_when(run.touched)})"
    if not run.holder and run.state != "running":
        last = f"{of}, wrote last on {_when(run.touched)}"
    share = min(1.0, run.step / run.steps) if run.steps else 0.0
    bar = f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>' if run.steps else ""
    numbers: dict[str, object] = {f"{name.replace('/', ' ')}": f"{value:.2f}" for name, value in list(run.main_scores().items())[:4]}
    row = run.rows[-1] if run.rows else {}
    for key, name, form in (
        ("loss", "loss", "{:.4f}"), ("spread/online", "spread of features", "{:.3f}"), ("erank/online", "effective rank", "{:.1f}"),
        ("images_per_second", "images per second", "{:.0f}"), ("memory_gb", "GB at most", "{:.2f}"),
    ):  # fmt: skip
        if row.get(key) is not None:
            numbers[name] = form.format(row[key])
    signs = [*collapses({**row, **{f"score/{k}": v for k, v in run.scores.items()}}), *below_start(run.scores)]
    warnings = "".join(f'<p class="warn">{text(sign)}</p>' for sign in signs)
    recipe = f"{text(run.recipe)}" + (f", seed {run.seed}" if run.seed is not None else "")
    state = f'<p><span class="state {run.state}">{run.state}</span> {recipe} <span class="faint">· {text(last)}</span></p>'
    return state + bar + tiles(numbers) + warnings


def scores_table(run: RunInfo) -> str:
    """The newest scores: a row for each network, a column for each measure."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in run.scores.items():
        *words, measure = name.split("/")
        if words and measure not in NEITHER:
            rows.setdefault(words[1] if len(words) > 1 else "trained", {})[f"{words[0]} {measure}"] = value
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    if not columns:
        return ""
    cells = [[who, *(f"{row[c]:.2f}" if c in row else "" for c in columns)] for who, row in rows.items()]
    said = '<p class="faint">The newest of each. random: the same network at its random start; pixels: raw pixels of small pictures.</p>'
    return table(["", *columns], cells, range(1, len(columns) + 1)) + said


def recipe_html(run: RunInfo) -> str:
    """What differs from the shipped recipe of that name, and the whole."""
    whole = f"<details><summary>the recipe as it was resolved</summary><pre>{text(tomli_w.dumps(run.table))}</pre></details>" if run.table else ""
    changed = shipped_differences(run)
    if changed is None:
        return f"<p>No recipe of the name {text(run.recipe)} comes with twinview, so there is none to compare with.</p>{whole}"
    if not changed:
        return f"<p>As twinview ships it: <code>{text(run.recipe)}</code>.</p>{whole}"
    return f"<p>What differs from <code>{text(run.recipe)}</code> as twinview ships it:</p>{table(['key', 'shipped', 'here'], changed)}{whole}"


def shipped_differences(run: RunInfo) -> list[tuple[str, str, str]] | None:
    """(key, shipped, here) of every key that is another one than in the shipped recipe; None where none of that name is shipped."""
    from twinview.assembly import assemble
    from twinview.recipe import names, read

    if run.recipe not in names():
        return None
    try:
        shipped = dict(flat(assemble(read(run.recipe)).table()))
    except TwinviewError:
        return None
    here = dict(flat(run.table))
    keys = [*here, *(key for key in shipped if key not in here)]
    return [(key, _value(shipped, key), _value(here, key)) for key in keys if shipped.get(key) != here.get(key) and key != "run.precision"]


def made_html(run: RunInfo) -> str:
    """Commands, versions, data."""
    sittings = [
        (_short_time(one.get("started", "")), one.get("step", ""), one.get("command", ""), one.get("device", ""), one.get("ranks", ""))
        for one in run.sittings
    ]
    found = table(["started (UTC)", "at step", "command", "device", "ranks"], sittings, (1, 4)) if sittings else ""
    data = run.manifest.get("data", {})
    facts = [("folder", run.folder.resolve()), ("images", data.get("images", "?")), ("checksum of the data", data.get("checksum", "?"))]
    facts += [("shards", f"{len(data.get('shards', []))}: {', '.join(map(str, data.get('shards', [])[:3]))}")]
    facts += [(f"method {name}", version) for name, version in run.manifest.get("methods", {}).items()]
    versions: dict[str, Any] = run.sittings[-1].get("versions", {}) if run.sittings else {}
    facts += [*versions.items(), *((key, run.sittings[-1][key]) for key in ("python", "machine") if run.sittings and key in run.sittings[-1])]
    return found + "<details open><summary>data and versions</summary>" + table(["", ""], facts) + "</details>"


def _value(leaves: Mapping[str, Any], key: str) -> str:
    return str(leaves[key]) if key in leaves else "(not there)"


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _short_time(said: str) -> str:
    return said[:16].replace("T", " ")
