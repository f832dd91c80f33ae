"""Detection and instance segmentation: torchvision's Faster and Mask R-CNN on any encoder, and AP by pycocotools."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_detection.ap import AP
from twinview_detection.rcnn import RCNN


@hookimpl
def parts() -> dict[str, type]:
    """The loss `detection.rcnn` and the evaluation `detection.ap`."""
    return {"rcnn": RCNN, "ap": AP}
