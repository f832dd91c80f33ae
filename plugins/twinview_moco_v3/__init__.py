"""MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057): contrast within the batch of all ranks, for ResNets and vision transformers.

Published with [target] update = "before_forward" and momentum 0.99 or 0.996 rising to 1.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_moco_v3.image import Image


@hookimpl
def parts() -> dict[str, type]:
    """`moco_v3.image`."""
    return {"image": Image}
