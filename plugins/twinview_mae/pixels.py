"""The loss: squared error between predicted and true pixels of the hidden patches."""
from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Head
from twinview.hooks import hookimpl, part
from twinview.ops.means import weighted_mean, wide
from twinview.ops.pictures import from_picture, three_channels
from twinview.ops.sheet import Cell, sheet
from twinview.ops.weights import load_weights
from twinview.values import Dims, Size, Step, Traits
from twinview_mae.decoder import OFFICIAL, Decoder

EPS = 1e-6  # beside a patch's variance
ROWS = 8  # of a picture


@part
class Pixels:
    """MAE's loss: the mean over hidden cells of the squared error of their pixels, each patch normalized by its own mean and deviation.

    A decoder sees the online tokens and a mask token in every hidden place.  Each view with hidden cells counts alike; the target branch is not
    asked.  Patches are the encoder's cells, of `cells.stride` pixels a side: a cell of a convolutional encoder is a token too, and its patch the
    square that it stands for.
    """

    width: int = field(default=512, validator=gt(0))  # of the decoder
    depth: int = field(default=8, validator=ge(1))  # blocks of the decoder
    attention_heads: int = field(default=16, validator=ge(1))  # of the decoder
    mlp_ratio: float = field(default=4.0, validator=gt(0))  # width of a block's hidden layer : width of the decoder
    normalize: bool = True  # each patch to mean 0 and variance 1 (published); or the pixels as the encoder saw them
    weights: str = ""  # a file or a run's folder that the decoder starts from, an official MAE checkpoint too; "": random

    def __attrs_post_init__(self) -> None:
        multiple = math.lcm(4, self.attention_heads)
        if self.width % multiple:
            raise ValueError(f"width wants a multiple of {multiple} for {self.attention_heads} attention heads and sine positions, not {self.width}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs cells and masks; where the encoder gives tokens, the decoder sees these, the class token among them."""
        return Traits(needs=frozenset({"cells", "masks"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The online-only `decoder`.  Raises CheckpointError for `weights` that do not fit."""
        out = dims.encoder.cells.stride ** 2 * dims.channels
        decoder = Decoder(dims.width("cells"), self.width, self.depth, self.attention_heads, self.mlp_ratio, out)
        if self.weights:
            load_weights(decoder, self.weights, renamed=OFFICIAL, place="[[loss]] mae.pixels.weights", what="decoder")
        return {"decoder": Head(decoder, "online_only")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`pixels`: 1 where the decoder says each patch's mean, 0 where it says every pixel (normalized patches)."""
        terms = []
        for view, hidden in enumerate(step.hidden):
            if hidden is not None:
                target = patches(step.pixels[view], self._side(step, view))
                terms.append(pixel_loss(self.predict(step, view), normalized(target) if self.normalize else target, hidden))
        return {"pixels": torch.stack(terms).mean()}

    @hookimpl
    def pictures(self, step: Step) -> dict[str, Tensor]:
        """`pixels`: of the first views with hidden cells what the encoder saw, what the decoder says of the rest, and the view itself.

        Of normalized patches the mean and the deviation are the true ones (the paper's figures too).
        """
        view, hidden = next((v, h[:ROWS]) for v, h in enumerate(step.hidden) if h is not None)
        side, grid = self._side(step, view), step.online[view].at("cells").shape[2:]
        true, said = wide(patches(step.pixels[view][:ROWS], side)), wide(self.predict(step, view)[:ROWS])
        if self.normalize:
            var, mean = torch.var_mean(true, dim=2, keepdim=True)
            said = said * (var + EPS).sqrt() + mean
        columns = [true * ~hidden[..., None], torch.where(hidden[..., None], said, true), true]
        wholes = torch.stack([whole(p, (grid[0], grid[1]), side) for p in columns], 1)  # [B, 3, C, H, W]
        low, high = wholes[:, 2].flatten(1).quantile(0.005), wholes[:, 2].flatten(1).quantile(0.995)  # of what was true: one scale for the sheet
        shown = ((wholes - low) / (high - low).clamp(min=1e-6) * 255).round().clamp(0, 255).byte().cpu()
        rows = [[Cell(three_channels(picture)) for picture in row] for row in shown]
        headings = (f"view {view + 1} as the encoder saw it", "hidden patches as the decoder says them", "the view")
        told = " Their mean and deviation are the true ones, since the loss normalizes patches." if self.normalize else ""
        caption = f"Hidden patches are grey on the left. In the middle the decoder's pixels stand in their place, the rest is the view's own.{told}"
        return {"pixels": from_picture(sheet(rows, headings=headings, caption=caption, height=150, nearest=True))}

    def predict(self, step: Step, view: int) -> Tensor:
        """[B, N, P * P * C]: what the decoder says of every cell of a view with hidden cells."""
        features, hidden = step.online[view], step.hidden[view]
        cells = features.at("cells")
        tokens = features.tokens if features.tokens is not None else cells.flatten(2).mT
        decoder: Decoder = step.branches.online.of(self, "decoder")
        predictions: Tensor = decoder(tokens, features.prefix, features.kept, hidden, (cells.shape[2], cells.shape[3]))
        return predictions

    def _side(self, step: Step, view: int) -> int:
        """Pixels of a patch's side: as many as the decoder says."""
        decoder: Decoder = step.branches.online.of(self, "decoder")
        return math.isqrt(decoder.out.out_features // step.pixels[view].shape[1])


def patches(images: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] -> [B, h * w, side * side * C], row by row, a patch's channels last.

    Sides that are no multiple of the patch are filled up with zeros, below and on the right, as the encoder does.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % side, 0, -height % side))
    rows, columns = -(-height // side), -(-width // side)
    cut = padded.reshape(len(images), -1, rows, side, columns, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(len(images), rows * columns, -1)


def whole(cut: Tensor, grid: Size, side: int) -> Tensor:
    """The inverse of `patches`: [B, h * w, side * side * C] -> [B, C, h * side, w * side]."""
    cells = cut.reshape(len(cut), *grid, side, side, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(cut), -1, grid[0] * side, grid[1] * side)


def normalized(target: Tensor) -> Tensor:
    """Patches [B, N, n] less their mean, by the root of their unbiased variance + EPS, all channels together."""
    wider = wide(target)
    var, mean = torch.var_mean(wider, dim=2, keepdim=True)
    return (wider - mean) / (var + EPS).sqrt()


def pixel_loss(predictions: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the `hidden` [B, N] cells of a batch of mean_k (p - t)^2, predictions and target [B, N, n]; a scalar, float32 or wider."""
    with torch.autocast(predictions.device.type, enabled=False):
        return weighted_mean((wide(predictions) - wide(target)).square().mean(2), hidden)
