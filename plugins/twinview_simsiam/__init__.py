"""SimSiam (Chen and He 2021, arXiv 2011.10566): Siamese learning without a momentum target."""
from __future__ import annotations

from twinview.hooks import hookimpl


@hookimpl
def parts() -> dict[str, type]:
    """Its parts."""
    return {}
