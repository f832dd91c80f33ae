"""Masks that belong to no one method."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_masks.random import Random


@hookimpl
def parts() -> dict[str, type]:
    """`masks.random`."""
    return {"random": Random}
