"""DenseSiam (Zhang et al., ECCV 2022, arXiv 2203.11075): pixel and region consistency, and unsupervised segmentation.

The released code segments only; pre-training follows the paper's outline with SimSiam's settings.  The image-level term is `simsiam.image`.
"""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_densesiam.align import GridSample
from twinview_densesiam.pixel import Pixel
from twinview_densesiam.projector import Projector
from twinview_densesiam.region import Region
from twinview_densesiam.segment import Segment
from twinview_densesiam.views import CropAndWhole

__all__ = ["CropAndWhole", "GridSample", "Pixel", "Projector", "Region", "Segment", "parts"]


@hookimpl
def parts() -> dict[str, type]:
    """Views, alignment, the shared projector and three losses."""
    return {
        "crop_and_whole": CropAndWhole,
        "grid_sample": GridSample,
        "projector": Projector,
        "pixel": Pixel,
        "region": Region,
        "segment": Segment,
    }
