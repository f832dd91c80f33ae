"""Masks that belong to no one method."""
from __future__ import annotations

from twinview.hooks import hookimpl


@hookimpl
def parts() -> dict[str, type]:
    """Its parts."""
    return {}
