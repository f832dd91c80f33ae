"""InstDist (Wu, Xiong, Yu and Lin 2018, arXiv 1805.01978): every image a class of its own, told apart by a memory bank of all images.

One view and no target branch: `byol.crops` with views = 1, and [target] momentum = 0.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_instdist.image import Image


@hookimpl
def parts() -> dict[str, type]:
    """`instdist.image`."""
    return {"image": Image}
