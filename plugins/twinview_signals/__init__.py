"""Signals that need no labels: rank of the features (RankMe, LiDAR, alpha-ReQ), alignment and uniformity, occupancy of clusters."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_signals.parts import AlphaReQ, Lidar, Occupancy, RankMe, Uniformity


@hookimpl
def parts() -> dict[str, type]:
    """`signals.rankme`, `signals.lidar`, `signals.alphareq`, `signals.uniformity`, `signals.occupancy`."""
    return {"rankme": RankMe, "lidar": Lidar, "alphareq": AlphaReQ, "uniformity": Uniformity, "occupancy": Occupancy}
