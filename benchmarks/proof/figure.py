"""A picture of a task's table: a dot for each seed, a bar at the mean, raw pixels as a line across.  Plain SVG, no library."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from proof.rows import Row
from proof.table import by_method

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 170, 30, 30, 58
FLOORS = {"random": "random start", "supervised": "supervised (with labels)"}
COLORS = {"random": "#8a8a8a", "supervised": "#2e7d32", "pixels": "#c0392b"}
METHOD = "#1f5fa8"
NAMES = {"linear": "linear probe, top-1 in %", "knn": "nearest neighbours, top-1 in %", "miou": "linear segmentation probe, mIoU in %"}


def figure(rows: Sequence[Row], probe: str, title: str) -> str:
    """The SVG of one probe's scores, methods in the order of their means."""
    scores = {m: [float(r[probe]) for r in of.values() if probe in r] for m, of in by_method(rows).items()}
    floor = scores.pop("pixels", None)
    shown = sorted(((m, s) for m, s in scores.items() if s), key=lambda pair: -statistics.fmean(pair[1]))
    values = [v for _, s in shown for v in s] + (floor or [])
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
