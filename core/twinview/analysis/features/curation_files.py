"""Duplicates and outliers as lists (.csv) and as pictures (.png)."""
from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

from twinview.analysis.features.duplicates import Curation, Pair
from twinview.data.dataset.read import read_image
from twinview.data.dataset.shards import Shards
from twinview.data.formats.decode import PixelFormat
from twinview.files import write_text
from twinview.ops.pictures import photograph
from twinview.ops.sheet import Cell, sheet
from twinview.terminal import one_line

GROUPS, WIDE, OUTLIERS = 12, 5, 24  # groups and copies of each, and outliers, that are drawn


def write_curation(folder: Path, found: Curation, images: Shards, keys: Sequence[str], ids: Sequence[int], form: PixelFormat) -> list[Path]:
    """Write `duplicates.csv`, `outliers.csv`, `keep.txt`, and pictures of the first of them; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = {i: group[0] for group in found.groups for i in group[1:]}
    best: dict[int, tuple[int, Pair]] = {}
    for pair in found.pairs:  # the most alike first
        for i, j in ((pair.one, pair.other), (pair.other, pair.one)):
            best.setdefault(i, (j, pair))
    rows = []
    for number, group in enumerate(found.groups):
        for i in group:
            other, pair = best[i]
            role = "copy" if i in copies else "keep"
            place = str(images.path(ids[i]))
            rows.append([number, role, keys[i], place, keys[other], pair.kind, f"{pair.match.correlation:.4f}", f"{pair.similarity:.4f}"])
    head = ["group", "role", "key", "file", "most_like", "kind", "correlation", "similarity"]
    written = [_csv(folder / "duplicates.csv", head, rows)]
    far = [[keys[i], str(images.path(ids[i])), f"{distance:.4f}"] for i, distance in found.outliers]
    written.append(_csv(folder / "outliers.csv", ["key", "file", "distance"], far))
    write_text(folder / "keep.txt", "".join(one_line(key) + "\n" for i, key in enumerate(keys) if i not in copies))
    written.append(folder / "keep.txt")

    def cell(i: int, text: str, frame: str | None = None) -> Cell:
        return Cell(photograph(read_image(images, int(ids[i]), form)), text, frame)

    if found.groups:
        lines = []
        for group in sorted(found.groups, key=len, reverse=True)[:GROUPS]:
            line = [cell(group[0], f"keep: {keys[group[0]]}", "green")]
            line += [cell(i, f"{best[i][1].kind} {best[i][1].match.correlation:.2f}: {keys[i]}", "red") for i in group[1:WIDE]]
            lines.append(line)
        more = f", the {GROUPS} largest" if len(found.groups) > GROUPS else ""
        title = f"{len(found.groups)} groups of near duplicates, {len(copies)} copies of {len(keys)} images{more}"
        caption = "Green: the largest of its group, to keep. Red: copies, with what was done to them and the correlation of the pixels."
        written.append(folder / "duplicates.png")
        sheet(lines, title=title, caption=caption).save(written[-1])
    if found.outliers:
        cells = [cell(i, f"{d:.2f}: {keys[i]}") for i, d in found.outliers[:OUTLIERS]]
        lines = [cells[at : at + 6] for at in range(0, len(cells), 6)]
        caption = "The number is 1 minus the mean cosine to the nearest neighbors in whitened features: above 1 an image is like no other."
        written.append(folder / "outliers.png")
        sheet(lines, title=f"The {len(cells)} images least like the others, of {len(keys)}", caption=caption).save(written[-1])
    return written


def _csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([one_line(value) for value in row] for row in rows)
    write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode())
    return path
