"""BYOL (Grill et al. 2020): bootstrap your own latent.  Its views, its two photometric settings and its image-level loss."""
from __future__ import annotations

from twinview.hooks import hookimpl
from twinview_byol.crops import Crops
from twinview_byol.image import Image
from twinview_byol.photometry import Photometry


@hookimpl
def parts() -> dict[str, type]:
    """`byol.crops`, `byol.photometry` and `byol.image`."""
    return {"crops": Crops, "photometry": Photometry, "image": Image}
