"""Lab: an encoder (ConvMixer), a photometry (gamma), a wrapper (a ramp for one loss) and an evaluation (alignment and uniformity)."""
from __future__ import annotations

from twinview import hookimpl
from twinview_lab.conv_mixer import ConvMixer
from twinview_lab.gamma import Gamma
from twinview_lab.ramp import Ramp
from twinview_lab.sphere import Sphere

TWINVIEW_HOOKS = 1


@hookimpl
def parts() -> dict[str, type]:
    """`lab.conv_mixer`, `lab.gamma`, `lab.ramp` and `lab.sphere`."""
    return {"conv_mixer": ConvMixer, "gamma": Gamma, "ramp": Ramp, "sphere": Sphere}
