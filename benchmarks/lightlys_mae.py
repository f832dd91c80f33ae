"""MAE's loss from lightly's pieces, its code unchanged, as its example puts them together."""
from __future__ import annotations

from typing import Any

from lightly.models import utils  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor
from torch.nn import functional as F


def lightlys_mae(encoder: Any, decoder: Any, images: Tensor, patch: int) -> Tensor:
    """Mean squared error of the hidden three quarters of the patches of images [B, 3, H, W], each normalized; a scalar."""
    shape = (len(images), (images.shape[2] // patch) * (images.shape[3] // patch) + 1)
    keep, mask = utils.random_token_mask(shape, mask_ratio=0.75)
    embedded = decoder.embed(encoder.encode(images, idx_keep=keep))
    tokens = utils.set_at_index(utils.repeat_token(decoder.mask_token, shape).to(embedded.dtype), keep, embedded)
    said = decoder.predict(utils.get_at_index(decoder.decode(tokens), mask))
    wanted = utils.normalize_mean_var(utils.get_at_index(utils.patchify(images, patch), mask - 1))
    return F.mse_loss(said.float(), wanted)
