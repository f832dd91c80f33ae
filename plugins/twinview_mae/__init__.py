"""MAE (He et al., CVPR 2022, arXiv 2111.06377): an asymmetric decoder reconstructs the pixels of hidden patches, from one view, without a target."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_mae.pixels import Pixels


@hookimpl
def parts() -> dict[str, type]:
    """`mae.pixels`; views are `byol.crops` with `views = 1`, masks `masks.random`."""
    return {"pixels": Pixels}
