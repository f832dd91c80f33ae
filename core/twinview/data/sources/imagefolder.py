"""A folder of classes, SOURCE/CLASS/.../IMAGE: ImageNet's layout (image-net.org, ILSVRC 2012), which torchvision documents as `ImageFolder`."""
from __future__ import annotations

from pathlib import Path

from twinview.data.sources import Entry, Found
from twinview.data.sources.files import image_field, images, keyed
from twinview.errors import DataError


def find(source: str | Path) -> Found:
    """Every image with its class in the field `cls`: the place of its folder among those of SOURCE, sorted, counted from 0."""
    root = Path(source)
    pictures, others = images(root)
    loose = [path for path in pictures if path.parent == root]
    if loose:
        raise DataError(f"{loose[0]}: lies in no class's folder. Move it into one, or pack with `images`.")
    classes = sorted({path.relative_to(root).parts[0] for path in pictures})
    number = {name: str(n).encode() for n, name in enumerate(classes)}
    entries = [
        Entry(key, {image_field(path): path, "cls": number[path.relative_to(root).parts[0]]}) for key, path in keyed(root, pictures).items()
    ]
    return Found(entries=entries, total=len(entries), about={"classes": classes}, passed_over=others)
