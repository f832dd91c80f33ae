"""torchvision's region proposals and box and mask heads on the maps of an encoder."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from twinview.values import Size
from twinview_detection.objects import Kinds
from twinview_detection.pyramid import FPN, LayerNorm2d, SimplePyramid, Single

RATIOS = (0.5, 1.0, 2.0)
LEVELS = 5
BOX, MASK, C4 = 7, 14, 14  # sides of what is cut out of the maps


class Options(Protocol):
    """As `detection.rcnn` has them."""

    neck: Literal["fpn", "c4", "simple"]
    width: int
    hidden: int
    anchor: int
    masks: bool
    proposals: int
    samples: int
    detections: int
    least_score: float


class Detector(nn.Module):
    """Maps of the encoder -> losses in train mode, detections in eval mode."""

    def __init__(self, options: Options, channels: Sequence[int], classes: int, levels: Sequence[str], kinds: Kinds) -> None:
        """`channels`: of the maps that it takes, whose names are `levels`; in C4 of the map and of the last stage; `kinds`: what objects are."""
        super().__init__()
        self.levels, self.kinds, self.classes, self.neck_kind, self.with_masks = tuple(levels), kinds, classes, options.neck, options.masks
        c4, width = options.neck == "c4", channels[0] if options.neck == "c4" else options.width
        self.neck: FPN | SimplePyramid | Single = Single()
        if not c4:
            self.neck = FPN(channels, width) if options.neck == "fpn" else SimplePyramid(channels[0], width)
        sizes = [options.anchor * 2**n for n in range(LEVELS)]
        anchors = AnchorGenerator((tuple(sizes),), (RATIOS,)) if c4 else AnchorGenerator(tuple((s,) for s in sizes), (RATIOS,) * LEVELS)
        n = {"training": options.proposals, "testing": options.proposals}
        rpn = RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=2 if options.neck == "simple" else 1)
        self.rpn = RegionProposalNetwork(anchors, rpn, 0.7, 0.3, 256, 0.5, n, n, 0.7)
        names = list(self.neck.names)
        if c4:
            features = channels[1]
            box: nn.Module = nn.Identity()
            self.behind: nn.Module = nn.BatchNorm2d(features)  # the extra one of MoCo's configuration
        else:
            features, self.behind = options.hidden, nn.Identity()
            box = TwoMLPHead(width * BOX**2, features)
            if options.neck == "simple":
                box = FastRCNNConvFCHead((width, BOX, BOX), [width] * 4, [features], norm_layer=LayerNorm2d)
        pool = MultiScaleRoIAlign(names, C4 if c4 else BOX, 0 if c4 else 2)
        mask: dict[str, Any] = {}
        if options.masks:
            inner = features if c4 else width
            mask = {
                "mask_roi_pool": MultiScaleRoIAlign(names, MASK, 0 if c4 else 2),
                "mask_head": nn.Identity() if c4 else MaskRCNNHeads(width, [width] * 4, 1),
                "mask_predictor": MaskRCNNPredictor(inner, width if not c4 else 256, classes + 1),
            }
        predictor = FastRCNNPredictor(features, classes + 1)
        self.heads = RoIHeads(
            pool, box, predictor, 0.5, 0.5, options.samples, 0.25, None, options.least_score, 0.5, options.detections, **mask
        )

    def forward(self, maps: Sequence[Tensor], size: Size, found: list[dict[str, Any]] | None, stage: nn.Module | None = None) -> Any:
        """Maps [B, C, h, w] of images of `size` pixels: losses by name where `found` has the objects, else detections of each image.

        `stage`: the encoder's last one, which C4 applies to each region.
        """
        features = self.neck(maps)
        images = ImageList(maps[0].new_empty(len(maps[0]), 1, *size), [size] * len(maps[0]))
        if stage is not None:
            self._behind(stage)
        proposals, losses = self.rpn(images, features, found)
        results, more = self.heads(features, proposals, images.image_sizes, found)
        if found is not None:
            return {**losses, **more}
        for one in results:
            if "masks" in one:
                one["masks"] = paste_masks_in_image(one["masks"], one["boxes"], size)[:, 0] > 0.5
        return results

    def _behind(self, stage: nn.Module) -> None:
        """C4: a region's features go through the encoder's last stage, which stays the encoder's: nothing here owns it."""
        regions = _Stage(stage, self.behind)
        object.__setattr__(self.heads, "box_head", _Mean(regions))
        if self.with_masks:
            object.__setattr__(self.heads, "mask_head", regions)


class _Stage:
    """Not a module: the encoder's weights are not this head's."""

    def __init__(self, stage: nn.Module, norm: nn.Module) -> None:
        self.stage, self.norm = stage, norm

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.stage(x)))


class _Mean:
    def __init__(self, inner: _Stage) -> None:
        self.inner = inner

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(x).mean((2, 3))


def size_of(images: Tensor) -> Size:
    """Height and width of images [..., H, W]."""
    return int(images.shape[-2]), int(images.shape[-1])
