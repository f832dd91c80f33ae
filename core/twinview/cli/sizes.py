"""Sizes of images on the command line."""
from __future__ import annotations

import re

from twinview.errors import TwinviewError

Size = tuple[int, int]


def size_of(text: str) -> Size:
    """`224` or `160x240` -> height, width."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise TwinviewError(f"--size: wants HEIGHTxWIDTH in pixels, or one number for both, not {text!r}.")
    return int(found[1]), int(found[2] or found[1])
