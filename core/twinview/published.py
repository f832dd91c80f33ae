"""Encoders as their libraries publish them: weights by name to start from, and tensors under the library's names to hand on."""
from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn


class Published(NamedTuple):
    """An encoder as the library that it comes from names its tensors, for use without twinview.

    One that its library does not build may have an attribute `unbuilt`, the options that are why: `width = 8`.
    """

    library: str  # timm, torchvision
    load: str  # the Python expression that makes the library's module
    tensors: dict[str, Tensor]  # what `load_state_dict` of that module takes
    strict: bool = True  # these are all that the module has


def odd_options(encoder: nn.Module) -> str:
    """` with width = 8`: the options for which its library has no such network, where the encoder says them (`unbuilt`)."""
    odd = getattr(encoder, "unbuilt", "")
    return f" with {odd}" if odd else ""


class Pretrained(NamedTuple):
    """Weights that an encoder's library publishes, as the options of its part: what a part's static method `pretrained(name)` gives.

    A part that has one may be scored as METHOD:NAME: `twinview evaluate knn timm:resnet50`.
    """

    options: dict[str, Any]  # of the part, `weights` among them
    mean: tuple[float, ...] = ()  # of the images that they were trained with, 0..1 for each channel; (): ImageNet's
    std: tuple[float, ...] = ()
    size: tuple[int, int] | None = None  # of these images, height, width in pixels; None: 224
