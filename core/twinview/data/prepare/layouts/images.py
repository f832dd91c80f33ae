"""A folder of images, however deep; with `labels`, a folder of label maps of the same names beside it."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed, label_maps
from twinview.data.prepare.layouts.partners import spare_maps
from twinview.data.store.listing import image_field, images
from twinview.data.writing.entry import Entry


def find(source: str | Path, labels: str | Path | None = None) -> Found:
    """Every image under `source`, sorted by path.  `labels` holds a PNG of class numbers of the same size under the same path for each."""
    root, drawn = Path(source), Path(labels) if labels else None
    pictures, others = images(root, without=drawn)
    maps = label_maps(pictures, lambda path: drawn / path.relative_to(root).with_suffix(".png")) if drawn else {}
    entries = [
        Entry(key, {image_field(path): path, **({MAP_FIELD: maps[path]} if maps else {})}) for key, path in keyed(root, pictures).items()
    ]
    spare = spare_maps(drawn, "**/*.png", maps.values()) if drawn else Counter[str]()
    return Found(entries=entries, total=len(entries), passed_over=others, unmatched=spare)
