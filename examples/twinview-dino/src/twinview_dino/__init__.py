"""DINO (Caron et al., ICCV 2021, arXiv 2104.14294): self-distillation with no labels, over two large crops and many small ones."""
from __future__ import annotations

from twinview import hookimpl
from twinview_dino.distill import Distill
from twinview_dino.views import MultiCrop

TWINVIEW_HOOKS = 1


@hookimpl
def parts() -> dict[str, type]:
    """`dino.multi_crop` and `dino.distill`."""
    return {"multi_crop": MultiCrop, "distill": Distill}
