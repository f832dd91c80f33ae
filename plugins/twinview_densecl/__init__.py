"""DenseCL (Wang et al., CVPR 2021, arXiv 2011.09157): dense contrastive learning.

The image-level half of its loss is `moco.image`; views and photometry are MoCo v2's.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_densecl.correspondence import Correspondence
from twinview_densecl.dense import Dense

__all__ = ["Correspondence", "Dense", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """The alignment and the dense loss."""
    return {"correspondence": Correspondence, "dense": Dense}
