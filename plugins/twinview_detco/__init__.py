"""DetCo (Xie et al., ICCV 2021, arXiv 2102.04803): contrast of images and of patches, at every level of the network.

The authors released no pre-training code: see docs/methods/detco.md for what is known from where.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_detco.levels import Levels
from twinview_detco.views import GlobalAndPatches

__all__ = ["GlobalAndPatches", "Levels", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """The views and the loss."""
    return {"global_and_patches": GlobalAndPatches, "levels": Levels}
