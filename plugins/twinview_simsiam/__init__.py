"""SimSiam (Chen and He 2021, arXiv 2011.10566): Siamese learning without a momentum target.

The method as published has [target] momentum = 0.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_simsiam.image import Image


@hookimpl
def parts() -> dict[str, type]:
    """`simsiam.image`."""
    return {"image": Image}
