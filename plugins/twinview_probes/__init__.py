"""Evaluations of frozen features."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_probes.classes import FewShot, Knn, Linear
from twinview_probes.cluster import Cluster
from twinview_probes.online import Online
from twinview_probes.robustness import Robustness
from twinview_probes.segment import CellNeighbors, Segment


@hookimpl
def parts() -> dict[str, type]:
    """`probes.cells`, `probes.cluster`, `probes.fewshot`, `probes.knn`, `probes.linear`, `probes.online`, `probes.robustness`, `probes.segment`."""
    return {
        **{"cells": CellNeighbors, "cluster": Cluster, "fewshot": FewShot, "knn": Knn, "linear": Linear},
        **{"online": Online, "robustness": Robustness, "segment": Segment},
    }
