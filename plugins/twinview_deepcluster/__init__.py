"""DeepCluster (Caron et al., ECCV 2018, arXiv 1807.05520): clusters of features become classes, again and again; of images, and of cells."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_deepcluster.alexnet import AlexNet
from twinview_deepcluster.cells import Cells, Classifier
from twinview_deepcluster.images import Images


@hookimpl
def parts() -> dict[str, type]:
    """`deepcluster.alexnet`, `deepcluster.images`, `deepcluster.classifier` and `deepcluster.cells`."""
    return {"alexnet": AlexNet, "images": Images, "classifier": Classifier, "cells": Cells}
