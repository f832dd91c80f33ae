"""SwAV (Caron et al., NeurIPS 2020, arXiv 2006.09882): swapped assignments between views, and multi-crop."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_swav.prototypes import Prototypes
from twinview_swav.views import MultiCrop

__all__ = ["MultiCrop", "Prototypes", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """The views and the loss."""
    return {"multi_crop": MultiCrop, "prototypes": Prototypes}
