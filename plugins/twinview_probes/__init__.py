"""Evaluations of frozen features."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_probes.classes import Knn, Linear
from twinview_probes.cluster import Cluster
from twinview_probes.segment import Segment


@hookimpl
def parts() -> dict[str, type]:
    """`probes.cluster`, `probes.knn`, `probes.linear`, `probes.segment`."""
    return {"cluster": Cluster, "knn": Knn, "linear": Linear, "segment": Segment}
