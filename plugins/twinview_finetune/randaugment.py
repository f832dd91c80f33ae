"""RandAugment (Cubuk et al. 2020), timm's, on the views of whole images."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview_finetune.mixing import drawn_from

MEAN = (124, 116, 104)  # what rotations and shears leave empty


@part
class RandAugment:
    """timm's RandAugment by its own words: rand-m9-mstd0.5-inc1 is two operations of magnitude 9 +- 0.5, stronger ones with it (MAE, BEiT).

    It turns and shears images too: for losses of whole images, whose geometry nobody asks for.
    """

    config: str = field(default="rand-m9-mstd0.5-inc1")  # as timm reads it: magnitude m, its deviation mstd, operations n, inc1: stronger with m

    def __attrs_post_init__(self) -> None:
        from timm.data.auto_augment import rand_augment_transform

        try:
            rand_augment_transform(self.config, {})
        except (AssertionError, ValueError, KeyError, IndexError) as e:
            raise RecipeError(f"config: timm reads no RandAugment from {self.config!r}: {e}. Write rand-m9-mstd0.5-inc1") from None

    @hookimpl
    def draw_augment(self, rng: Generator) -> dict[str, Tensor]:
        """A seed for each view of each image."""
        return {"seed": torch.tensor(int(rng.integers(2**62)))}

    @hookimpl
    def apply_augment(self, pixels: Tensor, params: dict[str, Tensor]) -> Tensor:
        """[B, 3, h, w] uint8 -> the same; each image by its own seed."""
        from timm.data.auto_augment import rand_augment_transform

        height, width = pixels.shape[2:]
        transform = rand_augment_transform(self.config, {"translate_const": int(min(height, width) * 0.45), "img_mean": MEAN})
        found = []
        for image, seed in zip(pixels.cpu(), params["seed"].tolist()):
            with drawn_from(seed):
                picture = transform(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
            found.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        return torch.stack(found).to(pixels.device)
