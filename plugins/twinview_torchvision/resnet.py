"""The ResNet encoder: torchvision's trunk under torchvision's parameter names."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet as ResNetTrunk
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from twinview.ops.maps import hide_cells, hide_pixels
from twinview.ops.weights import load_weights
from twinview.values import EncoderSpec, Features, Level, Published, Size

if TYPE_CHECKING:
    from twinview_torchvision import ResNet

STAGES = ("c2", "c3", "c4", "c5")
WIDTH = 64  # of torchvision's networks


class ResNetEncoder(nn.Module):
    """Images [B, C, H, W] -> `Features`; parameters are called as in torchvision's ResNet, others start with `fpn.` or `decoder.`."""

    fpn: nn.Module | None
    decoder: nn.Module | None
    built: str | None = None  # the expression by which a library builds the trunk
    unbuilt: str = ""  # the options with which torchvision does not

    def __init__(
        self, trunk: ResNetTrunk, *, cells: str, stride: int, small_stem: bool, fpn_channels: int, decoder_channels: int, in_channels: int
    ) -> None:
        """`trunk`: torchvision's ResNet; `stride` of c5 in pixels; `fpn_channels` 0: no pyramid; `decoder_channels` 0: no decoder.

        `in_channels`: of the images; unless they are 3 the first convolution is made anew.
        """
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4
        if small_stem or in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, trunk.bn1.num_features, *((3, 1, 1) if small_stem else (7, 2, 3)), bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        if small_stem:
            self.maxpool = nn.Identity()

        strides = [s if small_stem else 4 * s for s in (1, 2, 4, 8)]
        dilation = 1
        for i, layer in enumerate(self.stages):
            if strides[i] > stride:
                dilation = dilate(layer, dilation)
                strides[i] = stride

        channels = [_width(layer) for layer in self.stages]
        levels = {name: Level(c, s) for name, c, s in zip(STAGES, channels, strides)}
        self.fpn = FeaturePyramidNetwork(channels, fpn_channels) if fpn_channels else None
        if fpn_channels:
            levels |= {f"p{name[1]}": Level(fpn_channels, s) for name, s in zip(STAGES, strides)}
        self.decoder = Decoder(channels, decoder_channels) if decoder_channels else None
        if decoder_channels:
            levels["d2"] = Level(decoder_channels, strides[0])
        self.cells = cells
        self.spec = EncoderSpec(pooled=channels[-1], cells=levels[cells], levels=levels)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The four stages, c2 to c5."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """Every level of the images, [B, channels, ceil(H / stride), ceil(W / stride)].

        `hidden` [B, h * w]: those cells' pixels are zero at the input, and their features in `cells`.
        """
        if hidden is not None:
            images = hide_pixels(images, hidden, self.spec.cells.stride)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        levels: dict[str, Tensor] = {}
        for name, layer in zip(STAGES, self.stages):
            levels[name] = x = layer(x)
        if self.fpn is not None:
            levels |= {f"p{name[1]}": level for name, level in self.fpn({name: levels[name] for name in STAGES}).items()}
        if self.decoder is not None:
            levels["d2"] = self.decoder([levels[name] for name in STAGES])
        if hidden is not None:
            levels[self.cells] = hide_cells(levels[self.cells], hidden)
        return Features(cells=levels[self.cells], pooled=x.mean((2, 3)), levels=levels)

    def recomputable(self) -> list[nn.Module]:
        """The residual blocks."""
        return [block for stage in self.stages for block in stage.children()]

    def published(self, size: Size) -> Published | None:
        """For torchvision, or timm where images have not three channels, without pyramid, decoder and classifier; None where neither builds it."""
        if self.built is None:
            return None
        tensors = {name: value for name, value in self.state_dict().items() if not name.startswith(("fpn.", "decoder."))}
        return Published(self.built.partition(".")[0], self.built, tensors, strict=False)


class Decoder(nn.Module):
    """Levels from fine to coarse -> one map at the finest: each through a 1x1 convolution, added up top-down, bilinearly (PiCIE; DenseSiam)."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps [B, widths[i], h_i, w_i] -> [B, channels, h_0, w_0]."""
        *finer, x = [lateral(level) for lateral, level in zip(self.lateral, levels)]
        for level in reversed(finer):
            x = level + F.interpolate(x, level.shape[2:], mode="bilinear", align_corners=False)
        found: Tensor = x
        return found


def set_width(trunk: ResNetTrunk, width: int, *, zero_init_residual: bool) -> None:
    """Make stem and stages anew, of `width`, 2, 4 and 8 times `width` channels (times a block's expansion), started as torchvision starts them."""
    block, counts = type(trunk.layer1[0]), [len(stage) for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)]
    trunk.inplanes = width
    trunk.conv1, trunk.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    for i, count in enumerate(counts):
        setattr(trunk, f"layer{i + 1}", trunk._make_layer(block, width << i, count, stride=1 if i == 0 else 2))
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_(module.bn2.weight if isinstance(module, BasicBlock) else module.bn3.weight)


def dilate(layer: nn.Module, dilation: int) -> int:
    """Take the stride of 2 out of a stage (Chen et al. 2018, atrous convolution) and give the dilation of what comes after it.

    `dilation` is that of the stage's input.  The strided network's cells stay as they were, every second cell of every second row of the new map,
    since only convolutions behind the stride reach twice as far.  torchvision's own option refuses the basic blocks of ResNet-18 and 34.
    """
    reach = dilation
    for conv in (m for m in layer.modules() if isinstance(m, nn.Conv2d)):
        wide, strided = conv.kernel_size == (3, 3), conv.stride == (2, 2)
        if wide:
            conv.dilation = conv.padding = (reach, reach)
        if strided:
            conv.stride = (1, 1)
        if wide and strided:
            reach *= 2
    return reach


def _width(stage: nn.Module) -> int:
    return [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


def make(options: ResNet, channels: int) -> ResNetEncoder:
    """The encoder that a recipe's table describes, for images of `channels`, at random (torch's global generator) or with its weights."""
    trunk = torchvision.models.get_model(options.name, weights=None, zero_init_residual=options.zero_init_residual)
    if options.width != WIDTH:
        set_width(trunk, options.width, zero_init_residual=options.zero_init_residual)
    encoder = ResNetEncoder(
        trunk,
        cells=options.cells,
        stride=options.stride,
        small_stem=options.stem == "small",
        fpn_channels=options.fpn_channels if options.fpn else 0,
        decoder_channels=options.decoder,
        in_channels=channels,
    )
    dilated = [stride > options.stride for stride in (8, 16, 32)]  # of the last three stages
    plain = not any(dilated)
    small, narrow, basic = options.stem == "small", options.width != WIDTH, isinstance(encoder.layer1[0], BasicBlock)
    odd = {'stem = "small"': small, f"width = {options.width}": narrow, f"data.channels = {channels}": channels != 3}
    odd[f"stride = {options.stride}"] = not plain and not small and (basic or channels != 3)
    encoder.unbuilt = " and ".join(option for option, is_odd in odd.items() if is_odd)
    if not small and not narrow:
        if plain or not basic:  # torchvision dilates no basic blocks
            encoder.built = f"torchvision.models.{options.name}(" + ("" if plain else f"replace_stride_with_dilation={dilated}") + ")"
        if channels != 3:  # torchvision builds none; timm's of the same name is the same network, under the same names
            encoder.built = f"timm.create_model({options.name!r}, in_chans={channels}, num_classes=0)" if plain else None
    if options.weights:
        published = torchvision.models.get_model_weights(options.name)
        named = {w.name: partial(w.get_state_dict, progress=False, check_hash=True) for w in published}
        optional = ("fpn.", "decoder.")
        load_weights(encoder, options.weights, named=named, ignore=("fc.",), optional=optional, channels=channels, key=options.weights_key)
    return encoder
