"""Evaluations of frozen features."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_probes.segment import Segment


@hookimpl
def parts() -> dict[str, type]:
    """`probes.segment`."""
    return {"segment": Segment}
