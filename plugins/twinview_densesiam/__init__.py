"""DenseSiam (Zhang et al., ECCV 2022, arXiv 2203.11075): pixel and region consistency, and unsupervised segmentation."""
from __future__ import annotations

from twinview.hooks import hookimpl


@hookimpl
def parts() -> dict[str, type]:
    """Its parts."""
    return {}
