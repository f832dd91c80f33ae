"""MoCo (He et al. 2020, arXiv 1911.05722) and MoCo v2 (Chen et al. 2020, arXiv 2003.04297): contrast against a queue of averaged keys.

Published with [target] momentum = 0.999, schedule = "constant", update = "before_forward".  v2 is v1 with another projector,
temperature and photometry.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_moco.image import Image
from twinview_moco.shuffle import Shuffle


@hookimpl
def parts() -> dict[str, type]:
    """`moco.image` and `moco.shuffle`."""
    return {"image": Image, "shuffle": Shuffle}
