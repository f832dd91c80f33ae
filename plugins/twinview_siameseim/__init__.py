"""SiameseIM (Tao et al., CVPR 2023, arXiv 2206.01204): predict the dense features of another view from a masked one."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_siameseim.align import Relative
from twinview_siameseim.dense import Dense
from twinview_siameseim.masks import Blocks
from twinview_siameseim.views import Crops


@hookimpl
def parts() -> dict[str, type]:
    """`siameseim.crops`, `siameseim.blocks`, `siameseim.relative` and `siameseim.dense`."""
    return {"crops": Crops, "blocks": Blocks, "relative": Relative, "dense": Dense}
