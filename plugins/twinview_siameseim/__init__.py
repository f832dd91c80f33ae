"""SiameseIM (Tao et al., CVPR 2023, arXiv 2206.01204): predict the dense features of another view from a masked one."""
from __future__ import annotations

from twinview.hooks import hookimpl


@hookimpl
def parts() -> dict[str, type]:
    """Its parts."""
    return {}
