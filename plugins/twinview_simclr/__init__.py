"""SimCLR (Chen et al. 2020, arXiv 2002.05709): contrast between the two views of every image of the batch, over all ranks.

Published with [run] views_together = true and [target] momentum = 0: one network, both views in one BatchNorm pass.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_simclr.image import Image


@hookimpl
def parts() -> dict[str, type]:
    """`simclr.image`."""
    return {"image": Image}
