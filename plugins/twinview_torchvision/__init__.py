"""Encoders of torchvision: ResNets, with dilation instead of stride, a stem for small images, and a feature pyramid."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field
from attrs.validators import ge, gt

from twinview.errors import RecipeError, closest
from twinview.hooks import hookimpl, part
from twinview.ops.checks import of_weights

if TYPE_CHECKING:
    from torch import nn

    from twinview.values import Pretrained, Traits

NAMES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
STRIDES = {"imagenet": (32, 16, 8), "small": (8, 4, 2)}  # of c5, by stem; the first is the network's own


def _known(_: Any, __: Any, name: str) -> None:
    if name not in NAMES:
        raise RecipeError(f"name: torchvision has no ResNet {name!r}.{closest(name, NAMES)}")


@part
class ResNet:
    """A ResNet (He et al. 2016) without its classifier; `pooled` is the average of c5.

    `levels` are c2 to c5, with `fpn` p2 to p5, with `decoder` d2.
    """

    name: str = field(default="resnet18", validator=_known)  # of torchvision's
    cells: Literal["c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5", "d2"] = "c5"  # the level that is `cells`
    stride: int = 0  # pixels a cell of c5; 0: the network's own, 32 (small stem: 8). Smaller ones put dilation for stride in the last stages
    stem: Literal["imagenet", "small"] = "imagenet"  # small: 3x3 convolution of stride 1 and no max-pool, for images of some 32 pixels
    width: int = field(default=64, validator=gt(0))  # channels of the stem and of c2 (before a block's expansion), doubled at c3, c4 and c5
    fpn: bool = False  # feature pyramid (Lin et al. 2017) over c2 to c5
    fpn_channels: int = field(default=256, validator=gt(0))  # of each of p2 to p5
    decoder: int = field(default=0, validator=ge(0))  # channels of d2, all levels added up top-down at the finest stride (PiCIE, DenseSiam); 0: none
    zero_init_residual: bool = False  # each residual branch starts at zero (Goyal et al. 2017)
    weights: str = ""  # a file, a run's folder, a name of torchvision's such as IMAGENET1K_V2, or timm:NAME; "": random
    weights_key: str = field(default="", validator=of_weights)  # of several encoders in a file: a word before its names (teacher, encoder_q, ...)

    def __attrs_post_init__(self) -> None:
        allowed = STRIDES[self.stem]
        self.stride = self.stride or allowed[0]
        if self.stride not in allowed:
            raise RecipeError(f"stride: a ResNet with stem = {self.stem!r} has no stride {self.stride}. Write {', '.join(map(str, allowed))}")
        if self.cells.startswith("p") and not self.fpn:
            raise RecipeError(f"cells: {self.cells!r} is a level of the feature pyramid. Write fpn = true with it, or cells = 'c{self.cells[1]}'")
        if self.cells == "d2" and not self.decoder:
            raise RecipeError("cells: 'd2' is the map of the decoder. Write decoder = 128 (its channels) with it, or cells = 'c2'")

    @staticmethod
    def pretrained(name: str) -> Pretrained:
        """torchvision's weights of that name: `resnet50`, its best, or `resnet50.IMAGENET1K_V1`.  Raises RecipeError."""
        import torchvision

        from twinview.values import Pretrained

        bare, _, tag = name.partition(".")
        _known(None, None, bare)
        published = torchvision.models.get_model_weights(bare)
        known = [one.name for one in published]
        if tag and tag not in known:
            raise RecipeError(f"torchvision:{name}: torchvision publishes no such weights.{closest(tag, known)}")
        found = published[tag] if tag else published.DEFAULT
        made = found.transforms()
        return Pretrained({"name": bare, "weights": found.name}, tuple(made.mean), tuple(made.std))

    @hookimpl
    def traits(self) -> Traits:
        """Gives cells, pooled and levels; hides cells by zeroing: their pixels at the input (the mean color), their features in `cells`."""
        from twinview.values import Traits

        return Traits(gives=frozenset({"cells", "pooled", "levels", "hides", "hides_any", "any_channels", "recomputable"}))

    @hookimpl
    def make_encoder(self, channels: int) -> nn.Module:
        """The network.  Raises RecipeError for an unknown name of weights, CheckpointError for weights that do not fit."""
        from twinview.ops.vision import import_torchvision

        import_torchvision()
        from twinview_torchvision.resnet import make

        return make(self, channels)


@hookimpl
def parts() -> dict[str, type]:
    """`torchvision.resnet`."""
    return {"resnet": ResNet}
