"""BDD100K: driving images (doc.bdd100k.com, "Download" and "Label format").

    SOURCE/images/100k/train/0000f77c-6257be58.jpg      SOURCE/images/10k/train/0004a4c0-d4dff0ad.jpg
    SOURCE/labels/sem_seg/masks/train/0004a4c0-d4dff0ad.png     (of the 10k images; 0..18 as Cityscapes' trainIds, 255 unknown)
    (the masks of the first release are called 0004a4c0-d4dff0ad_train_id.png)
"""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from twinview.data.formats.fields import MAP_FIELD
from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.cityscapes import NAMES, SCORED
from twinview.data.prepare.layouts.common import keyed, label_maps, split_of
from twinview.data.prepare.layouts.partners import spare_maps, visible
from twinview.data.store.listing import folder, image_field, images
from twinview.data.writing.entry import Entry


def find(source: str | Path, split: str = "100k/train") -> Found:
    """Every image of a split, 100k/train or 10k/val for example; those of 10k with their label maps where the masks of the split are there."""
    root = folder(Path(source) / "images", "of BDD100K's images")
    split_of(split, {path.relative_to(root).as_posix() for path in visible(root.glob("*/*")) if path.is_dir()})
    paths, others = images(root / split)
    package, _, part = split.partition("/")
    masks = Path(source) / "labels" / "sem_seg" / "masks" / part
    labeled = package == "10k" and masks.is_dir()
    old = labeled and next(visible(masks.glob("*_train_id.png")), None) is not None
    drawn = label_maps(paths, lambda path: masks / f"{path.stem}{'_train_id' if old else ''}.png") if labeled else {}
    spare = spare_maps(masks, "*.png", drawn.values()) if labeled else Counter[str]()
    keys = keyed(root / split, paths)
    entries = [Entry(key, {image_field(path): path, **({MAP_FIELD: drawn[path]} if labeled else {})}) for key, path in keys.items()]
    metadata = {"classes": [NAMES[n] for n in SCORED]} if labeled else {}
    return Found(entries=entries, total=len(entries), metadata=metadata, passed_over=others, unmatched=spare)
