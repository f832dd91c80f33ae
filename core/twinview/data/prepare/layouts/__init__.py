"""Data sets as they lie on disk: one file for each layout, which finds (key, {field: file}) in an order of its own.

Each module offers `find(source, ...) -> Found`; what it takes besides the source are the options that `twinview shards pack` lets through to it.
"""
from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from twinview.data.writing.entry import Entry
from twinview.errors import DataError

KINDS = {
    "images": "a folder of images",
    "imagefolder": "a folder of classes, each a folder of images",
    "coco": "COCO images with their instance annotations",
    "lvis": "COCO images with the annotations of LVIS v1",
    "cocostuff": "COCO images with the pixel maps of COCO-Stuff",
    "cityscapes": "leftImg8bit with gtFine",
    "bdd100k": "BDD100K's 100k or 10k images",
    "soda10m": "SODA10M's labeled or unlabeled images",
    "waymo": "the camera images of Waymo's perception data set, v2",
    "voc": "PASCAL VOC",
    "ade20k": "ADE20K's scene parsing benchmark",
    "webdataset": "other shards",
}


class Found(NamedTuple):
    """A data set on disk."""

    entries: Iterable[Entry]  # always in the same order
    total: int  # of them
    metadata: Mapping[str, Any] = MappingProxyType({})  # for the manifest: classes, for example
    passed_over: Mapping[str, int] = MappingProxyType({})  # what is not packed, by kind: files by their suffix, hidden files and folders
    unmatched: Mapping[str, int] = MappingProxyType({})  # what meets no partner, by kind: annotations without an image, for example


def find(kind: str, source: str, options: Mapping[str, Any]) -> Found:
    """What a source of a kind holds.  Raises DataError, also for an option that this kind does not take."""
    module = importlib.import_module(f"{__name__}.{kind}")
    takes = list(inspect.signature(module.find).parameters)[1:]
    for name in options:
        if name not in takes:
            known = f"It takes {', '.join(f'--{t}' for t in takes)}." if takes else "It takes no options of its own."
            raise DataError(f"--{name}: {kind} has no such choice. {known}")
    found: Callable[..., Found] = module.find
    return found(source, **options)
