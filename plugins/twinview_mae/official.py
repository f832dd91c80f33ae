"""The names of the official MAE checkpoints, as ours.

A whole model, to go on training or to compare: `model.load_state_dict(from_official(state), strict=False)`.  A recipe needs none of this:
`[encoder] weights = "FILE"` of `timm.encoder` and `[[loss]] weights = "FILE"` of `mae.pixels` read such a file as it is.
"""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from twinview_mae.decoder import OFFICIAL

UNUSED = ("pos_embed", "decoder_pos_embed")  # fixed tables, which are computed here


def from_official(state: Mapping[str, Tensor], *, decoder: str = "mae/pixels/decoder") -> dict[str, Tensor]:
    """An official state dict by the names of a model with `timm.encoder` and `mae.pixels`.

    `decoder`: the key of its head, where a recipe gives the part a name of its own.
    """
    return {f"online.{our_name(name, decoder)}": value for name, value in state.items() if name not in UNUSED}


def our_name(official: str, decoder: str = "mae/pixels/decoder") -> str:
    """One parameter's name in the online branch."""
    for start, ours in OFFICIAL.items():
        if official.startswith(start):
            return f"heads.{decoder}.{ours}{official.removeprefix(start)}"
    return f"encoder.{official}"
