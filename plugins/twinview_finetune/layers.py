"""Rates by depth: layer decay (Clark et al. 2020; BEiT, MAE), and encoders that are not trained."""
from __future__ import annotations

import re

from attrs import field
from attrs.validators import ge, gt, le
from torch import Tensor

from twinview.branch import Branches, ParamRule
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.values import Progress

STAGE = re.compile(r"encoder\.(?:blocks|layers|stages)[._](\d+)\.")  # timm's transformers, Swin and ConvNeXt
RESNET = re.compile(r"encoder\.layer(\d)\.")
TABLES = ("pos_embed", "cls_token", "reg_token", "mask_token", "relative_position_bias_table")  # no decay, whatever their dimensions


@part
class Layers:
    """[[extra]]: the rate of block i is decay^(blocks - i) of the top's, i from 0; the stem, tokens and positions have decay^(blocks + 1), heads 1.

    With 12 blocks and 0.65: 0.0037, 0.0057 ... 0.65, 1, as MAE has them.  No weight decay on biases, norms, tokens and positions of the encoder.
    Heads keep the rules that their losses give them.
    """

    decay: float = field(default=0.65, validator=[gt(0), le(1)])
    blocks: int = field(default=12, validator=gt(0))  # of the encoder; a ResNet, ConvNeXt or Swin counts its 4 stages
    frozen: int = field(default=0, validator=ge(0))  # so many layers from below stay as they are: 1 is the stem, blocks + 1 all blocks

    @hookimpl
    def param_groups(self, name: str, parameter: Tensor) -> ParamRule | None:
        """Of the encoder's parameters.  Raises RecipeError for a block beyond `blocks`."""
        if not name.startswith("encoder."):
            return None
        layer = self.layer(name)
        plain = parameter.ndim > 1 and not any(word in name.split(".") for word in TABLES)
        return ParamRule(lr_scale=self.decay ** (self.blocks + 1 - layer), weight_decay=None if plain else 0.0, frozen=layer < self.frozen)

    @hookimpl
    def before_epoch(self, branches: Branches, progress: Progress) -> None:
        """Raises RecipeError, before the first step, where the encoder has fewer blocks than `blocks`: its top would be far from the top's rate."""
        names = (f"encoder.{name}" for name, _ in branches.online.encoder.named_parameters()) if progress.step == 0 else ()
        most = max((place for place in map(self.layer, names) if place <= self.blocks), default=self.blocks)
        if most == 0:
            raise RecipeError("[[extra]] finetune.layers: the encoder names no parameter as of a block. Leave it out, or choose another encoder.")
        if most < self.blocks:
            raise RecipeError(f"[[extra]] finetune.layers blocks: {self.blocks}, and the encoder has {most}. Write blocks = {most}.")

    def layer(self, name: str) -> int:
        """0 for the stem, i + 1 for block i, blocks + 1 for what comes behind, such as norms."""
        found = STAGE.match(name)
        resnet = RESNET.match(name)
        place = int(found[1]) + 1 if found else int(resnet[1]) if resnet else None
        if place is None:
            behind = re.match(r"encoder\.(norm|fc_norm|fpn|decoder)\.", name)
            return self.blocks + 1 if behind else 0
        if place > self.blocks:
            raise RecipeError(f"[[extra]] finetune.layers blocks: {self.blocks}, and the encoder has {name}. Write the number of its blocks.")
        return place
