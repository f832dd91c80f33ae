"""The names of the official SiameseIM checkpoints, as ours.

A whole model, to go on training or to compare: `model.load_state_dict(from_official(state), strict=False)`, where what is missing is a head of
another part.  The encoder alone needs none of this: `[encoder] weights = "FILE"` of `timm.encoder` reads such a file as it is.
"""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PLACES = {  # of a branch: start of the official name -> ours
    "patch_embed.": "encoder.patch_embed.",
    "cls_token": "encoder.cls_token",
    "blocks.": "encoder.blocks.",
    "decoder_embed.": "heads.{projector}.embed.",
    "projector_decoder_blocks.": "heads.{projector}.blocks.",
    "mask_token": "heads.{decoder}.mask_token",
    "decoder_pos_mlp.": "heads.{decoder}.place.",
    "predictor_decoder_blocks.": "heads.{decoder}.blocks.",
    "decoder_pred.": "heads.{decoder}.out.",
    "student_norm.": "heads.{norm}.",
}
UNUSED = ("pos_embed", "decoder_pos_embed", "mm_mask_token")  # fixed tables, which are computed here, and a copy that the target never looks at


def from_official(state: Mapping[str, Tensor], *, projector: str = "siameseim/dense/projector", decoder: str = "") -> dict[str, Tensor]:
    """An official state dict by the names of a `Siamese` with `timm.encoder`, `siameseim.relative` and `siameseim.dense`.

    `projector`, `decoder`: keys of the heads, where a recipe gives the parts names of their own; `decoder` "": that of the checkpoint's width.
    Raises KeyError for a name that an official checkpoint does not have.
    """
    decoder = decoder or f"siameseim/relative/decoder{state['mask_token'].shape[-1]}"
    return {our_name(name, projector, decoder): value for name, value in state.items() if name not in UNUSED}


def our_name(official: str, projector: str, decoder: str) -> str:
    """One parameter's or buffer's name; those of the official target start with `mm_`."""
    branch, name = ("target", official.removeprefix("mm_")) if official.startswith("mm_") else ("online", official)
    for start, ours in PLACES.items():
        if name.startswith(start):
            norm = f"{projector.rpartition('/')[0]}/norm"  # of the same part
            return f"{branch}.{ours.format(projector=projector, decoder=decoder, norm=norm)}{name.removeprefix(start)}"
    raise KeyError(f"an official SiameseIM checkpoint holds no {official!r}")
