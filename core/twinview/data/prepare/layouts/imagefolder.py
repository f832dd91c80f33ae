"""A folder of classes, SOURCE/CLASS/.../IMAGE: ImageNet's layout (image-net.org, ILSVRC 2012), which torchvision documents as `ImageFolder`."""
from __future__ import annotations

from pathlib import Path

from twinview.data.prepare.layouts import Found
from twinview.data.prepare.layouts.common import keyed
from twinview.data.store.listing import hidden, image_field, images
from twinview.data.writing.entry import Entry
from twinview.errors import DataError


def find(source: str | Path) -> Found:
    """Every image with its class in the field `cls`: the place of its folder among those of SOURCE, sorted, counted from 0.

    A folder without images counts too: a validation set that lacks the images of a class then numbers the others as the training set does.
    """
    root = Path(source)
    pictures, others = images(root)
    loose = [path for path in pictures if path.parent == root]
    if loose:
        raise DataError(f"{loose[0]}: lies in no class's folder. Move it into one, or pack with `images`.")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not hidden(path.name))
    number = {name: str(n).encode() for n, name in enumerate(classes)}
    entries = [
        Entry(key, {image_field(path): path, "cls": number[path.relative_to(root).parts[0]]}) for key, path in keyed(root, pictures).items()
    ]
    return Found(entries=entries, total=len(entries), metadata={"classes": classes}, passed_over=others)
