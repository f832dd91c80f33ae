"""A picture of a task's table: a dot for each seed, a bar at the mean, raw pixels as a line across.  Plain SVG, no library."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from proof.rows import Row
from proof.table import PIXELS, by_method, raw

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 170, 30, 30, 58
FLOORS = {"random": "random start", "supervised": "supervised (with labels)"}
COLORS = {"random": "#8a8a8a", "supervised": "#2e7d32", "pixels": "#c0392b"}
METHOD = "#1f5fa8"
HUES = ("#1f5fa8", "#c77700", "#6a3d9a", "#00857c", "#b0307a", "#555555")  # of curves
NAMES = {
    "linear": "linear probe, top-1 in %", "knn": "nearest neighbors, top-1 in %",
    "miou": "linear segmentation probe, mIoU in %", "cluster": "unsupervised segmentation, mIoU in %",
}


def figure(rows: Sequence[Row], probe: str, title: str) -> str:
    """The SVG of one probe's scores, methods in the order of their means."""
    scores = {m: [float(r[probe]) for r in of.values() if probe in r] for m, of in by_method(rows).items()}
    floor = scores.get(raw(probe, scores))
    scores = {method: found for method, found in scores.items() if method not in PIXELS}
    shown = sorted(((m, s) for m, s in scores.items() if s), key=lambda pair: -statistics.fmean(pair[1]))
    values = [v for _, s in shown for v in s] + (floor or [])
    if not values:
        raise SystemExit(f"no row of this task has a score {probe}")
    low, high = 5 * (min(values) // 5), 5 * (max(values) // 5 + 1)
    bottom = TOP + ROW * len(shown)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 50}" width="{WIDTH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{bottom + 50}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    step = 5 if high - low <= 50 else 10
    for tick in range(int(low), int(high) + 1, step):
        lines.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{tick}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 38}" text-anchor="middle" fill="#333">{escape(NAMES[probe])}</text>')
    if floor:
        at = x(statistics.fmean(floor))
        dashes = 'stroke-width="2" stroke-dasharray="5 4"'
        lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="{COLORS["pixels"]}" {dashes}/>')
        lines.append(f'<text x="{at:.1f}" y="{TOP - 12}" text-anchor="middle" fill="{COLORS["pixels"]}">raw pixels</text>')
    for i, (method, found) in enumerate(shown):
        y, color, mean = TOP + ROW * (i + 0.5), COLORS.get(method, METHOD), statistics.fmean(found)
        lines.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(FLOORS.get(method, method))}</text>')
        lines.append(f'<line x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" stroke="{color}" stroke-width="3"/>')
        lines += [f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4" fill="{color}" fill-opacity="0.55"/>' for value in found]
    return "\n".join([*lines, "</svg>", ""])


def curves(rows: Sequence[Row], probe: str, title: str) -> str:
    """The SVG of one probe over the steps of every run whose earlier checkpoints were scored, from its random start; raw pixels as a line across."""
    methods = by_method(rows)
    drawn: list[tuple[str, int, list[tuple[int, float]]]] = []
    for method, of in methods.items():
        for seed, row in sorted(of.items()):
            if row.get("curve"):
                start = [(0, methods["random"][seed][probe])] if seed in methods.get("random", {}) else []
                drawn.append((method, seed, [*start, *((one["step"], one[probe]) for one in row["curve"]), (row["steps"], row[probe])]))
    if not drawn:
        raise SystemExit("no run of this task was made with --curve")
    floor = next((row[probe] for row in methods.get(raw(probe, methods), {}).values() if probe in row), None)
    values: list[float] = [y for _, _, points in drawn for _, y in points] + ([floor] if floor else [])
    low, high, last = 5 * (min(values) // 5), 5 * (max(values) // 5 + 1), max(int(points[-1][0]) for _, _, points in drawn)
    left, right, top, bottom = 50, 190, 40, 320

    def x(step: float) -> float:
        return left + step / last * (WIDTH - left - right)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 50}" width="{WIDTH}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{bottom + 50}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{left}" y="{bottom + 40}" fill="#333">across: optimizer steps; up: {escape(NAMES[probe])}</text>',
    ]
    for tick in range(int(low), int(high) + 1, 5):
        lines.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick}</text>')
    for part in range(5):
        lines.append(f'<text x="{x(last * part / 4):.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{last * part // 4}</text>')
    ends = [(y(points[-1][1]), f"{method}, seed {seed}", HUES[i % len(HUES)]) for i, (method, seed, points) in enumerate(drawn)]
    if floor:
        dashes = f'stroke="{COLORS["pixels"]}" stroke-dasharray="5 4"'
        lines.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y(floor):.1f}" y2="{y(floor):.1f}" {dashes}/>')
        ends.append((y(floor), "raw pixels", COLORS["pixels"]))
    for i, (_, _, points) in enumerate(drawn):
        path, color = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points), HUES[i % len(HUES)]
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines += [f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>' for step, value in points]
    at = 0.0
    for height, name, color in sorted(ends):
        at = max(height, at + 16)  # names do not lie on one another
        lines.append(f'<text x="{WIDTH - right + 8}" y="{at + 4:.1f}" fill="{color}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])
