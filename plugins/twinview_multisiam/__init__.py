"""MultiSiam (Chen et al., ICCV 2021, arXiv 2108.12178): Siamese learning on street scenes and other images of many objects.

Implements the published design; settings that were not published follow BYOL, PixPro and DenseCL.  The image-level half of the loss is
`byol.image`.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_multisiam.align import Offset, RoI, Unaligned
from twinview_multisiam.clusters import Clusters
from twinview_multisiam.views import IoUCrops


@hookimpl
def parts() -> dict[str, type]:
    """Views, three alignments and the dense loss."""
    return {"iou_crops": IoUCrops, "roi": RoI, "offset": Offset, "none": Unaligned, "clusters": Clusters}
