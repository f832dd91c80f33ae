"""PixPro (Xie et al., CVPR 2021, arXiv 2011.10043): propagate yourself, pixel-level consistency.

Its views and its photometry are BYOL's (`byol.crops`, `byol.photometry`).
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_pixpro.instance import Instance
from twinview_pixpro.pixels import Pixels

__all__ = ["Instance", "Pixels", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """The loss between cells, and the optional one between images."""
    return {"pixels": Pixels, "instance": Instance}
