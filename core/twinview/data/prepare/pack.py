"""Write shards: samples become tars in WebDataset's layout, with their indexes and a manifest.

The bytes of images and label maps stay as they are unless asked otherwise; the same input gives the same tars, byte for byte, in one go or in many.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from twinview.data.prepare import layouts
from twinview.data.prepare.layouts import images as image_folder
from twinview.data.writing.parts import Part
from twinview.data.writing.writer import Options, Summary, write_shards

FEWEST = 8  # shards that a data set is packed into, small as it may be

A = TypeVar("A")
B = TypeVar("B")


def pack(kind: str, source: str, out: Path, options: Options, part: Part | None = None, **chosen: Any) -> Summary:
    """Pack a data set of a kind of `layouts.KINDS` into OUT, or one part of it beside OUT.  Raises DataError.

    `chosen` are that kind's own options.
    """
    found = layouts.find(kind, source, chosen)
    metadata = {"kind": kind, **{name: value for name, value in chosen.items() if name != "labels"}, **found.metadata}
    return _pack(found, out, options, metadata, part=part)


def pack_images(images: Path, out: Path, labels: Path | None = None, *, name: str | None = None, **options: Any) -> Summary:
    """Pack a folder of images, with `labels` a folder of label maps beside it; see `sources.images`, and `Options` for the options."""
    return _pack(image_folder.find(images, labels), out, Options(**options), {"kind": "images"}, name)


def _pack(
    found: layouts.Found, out: Path, options: Options, metadata: Mapping[str, Any], name: str | None = None, part: Part | None = None
) -> Summary:
    size = min(options.shard_size, -(-found.total // FEWEST))
    fitted = attrs.evolve(options, shard_size=max(size, 1))
    unmatched = {kind: count for kind, count in found.unmatched.items() if count}
    metadata = {**metadata, **({"unmatched": unmatched} if unmatched else {})}
    written = write_shards(found.entries, out, total=found.total, options=fitted, name=name, what="pack", metadata=metadata, part=part)
    return attrs.evolve(written, passed_over=found.passed_over, unmatched=unmatched)
