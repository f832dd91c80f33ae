"""timm's other networks: the feature maps that they give, hidden cells zeroed."""
from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError, closest
from twinview.ops.maps import hide_cells, hide_pixels
from twinview.ops.weights import load_weights
from twinview.values import EncoderSpec, Features, Level, Published, Size
from twinview_timm.create import call_arguments, create, refuse_torchvision

if TYPE_CHECKING:
    from twinview_timm import Encoder

ANY_SIZE = ("strict_img_size", False), ("dynamic_img_size", True)  # what frees a network of a fixed size, where it takes one of them


class Maps(nn.Module):
    """Images [B, C, H, W] -> `Features`, of one of timm's networks, whose class this one is mixed into: the parameters keep their names.

    Sides that are no multiple of the last level's stride are filled up with zeros, below and on the right, and the maps cut back.
    """

    spec: EncoderSpec
    map_places: dict[str, int]  # level -> its place among those that timm counts
    map_cells: str  # the level that is `cells`
    map_source: tuple[str, dict[str, Any]]  # what timm made it of
    map_size: Size | None  # the only size of images that it takes

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden` [B, h * w]: those cells' pixels are zero at the input, and their features in `cells`."""
        height, width = images.shape[-2:]
        if self.map_size and self.map_size != (height, width):
            only = f"{self.map_source[0]!r} takes images of {self.map_size[0]}x{self.map_size[1]} alone, not of {height}x{width}"
            raise RecipeError(f"[encoder] timm.encoder: {only}. Set img_size or the size of the views, or choose another network.")
        if hidden is not None:
            images = hide_pixels(images, hidden, self.spec.cells.stride)
        if self.map_size is None:
            most = max(level.stride for level in self.spec.levels.values())
            images = F.pad(images, (0, -width % most, 0, -height % most))
        found = self.forward_intermediates(images, indices=[*self.map_places.values()], stop_early=True, intermediates_only=True)  # type: ignore[operator]
        levels: dict[str, Tensor] = {}
        for (name, level), x in zip(self.spec.levels.items(), found):
            levels[name] = x = x[..., : -(-height // level.stride), : -(-width // level.stride)]
            if x.shape[2:] != (-(-height // level.stride), -(-width // level.stride)):
                said = f"the map {name} of {self.map_source[0]!r} is {x.shape[2]}x{x.shape[3]} for images of {height}x{width}"
                raise RecipeError(f"[encoder] timm.encoder: {said}, not one cell for every {level.stride} pixels. Choose another network.")
        pooled = next(reversed(levels.values())).mean((2, 3))
        if hidden is not None:
            levels[self.map_cells] = hide_cells(levels[self.map_cells], hidden)
        return Features(cells=levels[self.map_cells], pooled=pooled, levels=levels)

    def recomputable(self) -> list[nn.Module]:
        """The blocks that timm names for rates by layer; none where it names none."""
        try:
            rules = self.group_matcher(coarse=False)["blocks"]  # type: ignore[operator]
        except (AttributeError, KeyError, TypeError):
            return []
        patterns = [(rules, None)] if isinstance(rules, str) else rules
        found = dict.fromkeys(path for name, _ in self.named_parameters() if (path := _block(name, patterns)))
        return [self.get_submodule(path) for path in found]

    def published(self, size: Size) -> Published:
        """For timm; what lies behind the last level is not in it."""
        name, arguments = self.map_source
        return Published("timm", f"timm.create_model({name!r}, {call_arguments(arguments)})", dict(self.state_dict()), strict=False)


def _block(name: str, patterns: Iterable[tuple[str, tuple[int, ...] | None]]) -> str:
    """`stages.1.blocks.2.mlp.fc1.weight` -> `stages.1.blocks.2`; "" where the first pattern that fits gives a place by hand (stems, norms)."""
    for pattern, place in patterns:
        found = re.match(pattern, name)
        if found:
            return found[0] if place is None else ""
    return ""


@lru_cache
def mixed(kind: type[nn.Module]) -> type[Maps]:
    """The class of timm's network with `Maps` in front: its modules, our forward."""
    return type(f"{kind.__name__}Maps", (Maps, kind), {})


def make(options: Encoder, channels: int) -> Maps:
    """The encoder that a recipe's table describes, for images of `channels`, at random (torch's global generator) or with its weights."""
    given: dict[str, Any] = ({"img_size": options.img_size} if options.img_size else {}) | ({"in_chans": channels} if channels != 3 else {})
    net, free = _any_size(options.name, {**given, **({"drop_path_rate": options.drop_path} if options.drop_path else {})})
    if not hasattr(net, "forward_intermediates") or not hasattr(net, "prune_intermediate_layers"):
        raise RecipeError(f"[encoder] timm.encoder: timm gives no feature maps of {options.name!r}. Choose another network.")
    levels, places = {}, {}
    for place, info in enumerate(net.feature_info):
        if info["reduction"] >= 4:
            name = f"c{round(math.log2(info['reduction']))}"
            levels[name], places[name] = Level(info["num_chs"], info["reduction"]), place  # the last of each stride
    cells = options.cells or next(reversed(levels))
    if cells not in levels:
        raise RecipeError(f"[encoder] timm.encoder.cells: {options.name!r} has no level {cells!r}.{closest(cells, levels)}")
    whole = net.state_dict().keys()
    net.prune_intermediate_layers([*places.values()], prune_norm=True, prune_head=True)
    fixed = not free and net.pretrained_cfg.get("fixed_input_size")
    encoder = cast(Maps, net)
    encoder.__class__ = mixed(cast(Any, type(net)))
    encoder.spec = EncoderSpec(pooled=[*levels.values()][-1].channels, cells=levels[cells], levels=levels)
    encoder.map_places, encoder.map_cells, encoder.map_source = places, cells, (options.name, {**given, **free, "num_classes": 0})
    encoder.map_size = ((options.img_size,) * 2 if options.img_size else net.pretrained_cfg["input_size"][1:]) if fixed else None
    if options.weights:
        refuse_torchvision(options.weights)
        classifiers = net.pretrained_cfg.get("classifier") or ()
        left_out = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        ignore = (*(f"{c}." for c in left_out), *(whole - encoder.state_dict().keys()))
        load_weights(encoder, options.weights, ignore=ignore, channels=channels, key=options.weights_key)
    return encoder


def _any_size(name: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, bool]]:
    """The network, and what freed it of a fixed size of images.  Raises RecipeError."""
    state = torch.get_rng_state()
    for key, value in ANY_SIZE:
        try:
            return create(name, num_classes=0, **arguments, **{key: value}), {key: value}
        except RecipeError:
            torch.set_rng_state(state)
    return create(name, num_classes=0, **arguments), {}
