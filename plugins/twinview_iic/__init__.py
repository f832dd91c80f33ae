"""IIC (Ji, Henriques, Vedaldi, ICCV 2019, arXiv 1807.06653): clusters of pixels that say most of one another across views and small displacements."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_iic.clusters import Clusters
from twinview_iic.information import MutualInformation
from twinview_iic.network import SegmentationNet
from twinview_iic.views import Pair


@hookimpl
def parts() -> dict[str, type]:
    """`iic.pair`, `iic.segmentation_net`, `iic.clusters` and `iic.mutual_information`."""
    return {"pair": Pair, "segmentation_net": SegmentationNet, "clusters": Clusters, "mutual_information": MutualInformation}
