"""PiCIE (Cho et al., CVPR 2021, arXiv 2103.17070): pixels are clustered before every epoch, and each view learns its own and the other's clusters."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_picie.clusters import Centroids, Clusters


@hookimpl
def parts() -> dict[str, type]:
    """`picie.centroids` and `picie.clusters`."""
    return {"centroids": Centroids, "clusters": Clusters}
