"""ReSim (Xiao et al., ICCV 2021, arXiv 2103.12902): region similarity learning, as released on a feature pyramid.

The image-level half of its loss is `moco.image`.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_resim.views import Crops
from twinview_resim.windows import Windows

__all__ = ["Crops", "Windows", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """The views and the loss between windows."""
    return {"crops": Crops, "windows": Windows}
