"""Photometric augmentation: BYOL's two settings, one for each view."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from attrs import field
from attrs.validators import ge, le
from numpy.typing import NDArray
from torch import Tensor

from twinview.hooks import hookimpl, part
from twinview.ops.checks import share, shares, span
from twinview.values import Size, Traits
from twinview_byol import color
from twinview_byol.blur import gaussian_blur, gaussian_kernels, own_kernels

JITTER = (color.brightness, color.contrast, color.saturation, color.hue)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing
LEAST = (0.0, 0.0, 0.0, -0.5)


@part
class Photometry:
    """Color jitter, grey, Gaussian blur, solarisation (BYOL, appendix B).

    Lists give one chance for each view; further views start over.  Where chances differ, as published, the views are asymmetric.
    The blur is published in pixels of 224 px views: `blur_reference = 224` scales it with the view, for smaller ones.
    Saturation, hue and grey are of red, green and blue: of images of another number of channels, 0 each.
    """

    jitter: float = field(default=0.8, validator=share)  # chance of the four below
    coins: Literal["together", "each"] = "together"  # one coin for the four, or one for each (PiCIE, DenseSiam)
    order: Literal["random", "fixed"] = "random"  # in which the four are applied; fixed: as they stand here
    brightness: float = field(default=0.4, validator=ge(0))  # factor uniform in 1 - x .. 1 + x, at least 0
    contrast: float = field(default=0.4, validator=ge(0))  # likewise
    saturation: float = field(default=0.2, validator=ge(0))  # likewise
    hue: float = field(default=0.1, validator=[ge(0), le(0.5)])  # turn uniform in -x .. x of the full circle
    grey: float = field(default=0.2, validator=share)  # chance
    grey_first: bool = False  # before the four (MoCo's first paper) instead of behind them
    blur: list[float] = field(factory=lambda: [1.0, 0.1], validator=shares)  # chance, by view
    blur_sigma: tuple[float, float] = field(default=(0.1, 2.0), validator=span)  # uniform; pixels
    blur_reference: int = field(default=0, validator=ge(0))  # side of the views, in pixels, that blur_sigma is meant for; 0: any
    solarize: list[float] = field(factory=lambda: [0.0, 0.2], validator=shares)  # chance, by view; values from 128 are inverted
    views: list[int] = field(factory=list)  # that are changed at all, counted from 0; empty: every view

    @hookimpl
    def traits(self) -> Traits:
        """Takes 16-bit images, and without saturation, hue and grey any number of channels."""
        colored = self.saturation or self.hue or self.grey
        gives = frozenset({"deep"} if colored else {"deep", "any_channels"})
        return Traits(gives=gives, instead="Write saturation = 0.0, hue = 0.0, grey = 0.0, which are of red, green and blue.")

    @hookimpl
    def draw_augment(self, view: int, size: Size, rng: np.random.Generator) -> dict[str, Tensor]:
        """`order` [4] and `factors` [4] of brightness, contrast, saturation, hue (neutral without jitter), `grey`, `sigma` (0: no blur), `solarize`.

        Every call takes as many numbers from `rng` as another of the same part.
        """
        order = rng.permutation(len(JITTER)) if self.order == "random" else np.arange(len(JITTER))
        coin = rng.random(4).tolist()  # of numbers so few, Python's own arithmetic is the fastest
        place = rng.random(5).tolist()
        jittered = coin[:1] * len(JITTER) if self.coins == "together" else rng.random(len(JITTER)).tolist()
        if self.views and view not in self.views:
            jittered, coin = [2.0] * len(JITTER), [2.0] * len(coin)  # no chance is as high
        factors = list(NEUTRAL)
        for i, strength in enumerate(self._strengths()):
            if jittered[i] < self.jitter:
                low = max(NEUTRAL[i] - strength, LEAST[i])
                factors[i] = low + place[i] * (NEUTRAL[i] + strength - low)
        sigma = self._scale(size) * (self.blur_sigma[0] + place[4] * (self.blur_sigma[1] - self.blur_sigma[0]))
        blurred = coin[2] < self.blur[view % len(self.blur)]
        drawn = {
            "order": order,
            "factors": np.array(factors, np.float32),
            "grey": np.array(coin[1] < self.grey),
            "sigma": np.array(sigma if blurred else 0.0, np.float32),
            "solarize": np.array(coin[3] < self.solarize[view % len(self.solarize)]),
        }
        return {name: torch.from_numpy(value) for name, value in drawn.items()}

    @hookimpl
    def draw_augment_batch(self, view: int, size: Size, keys: NDArray[np.uint64]) -> dict[str, Tensor]:
        """The same of a batch."""
        from twinview_byol.compiled_draws import draw  # here: numba takes a second to import, and only data workers need it

        n, changed = len(keys), not self.views or view in self.views
        order, factors, sigma = np.empty((n, len(JITTER)), np.int64), np.empty((n, len(JITTER)), np.float32), np.empty(n, np.float32)
        grey, solarize = np.empty(n, np.bool_), np.empty(n, np.bool_)
        chances = np.array([self.jitter, self.grey, self.blur[view % len(self.blur)], self.solarize[view % len(self.solarize)]])
        factor = np.array([NEUTRAL, LEAST, self._strengths()])
        sigmas = np.array([*self.blur_sigma, self._scale(size)])
        draw(keys, self.order == "random", self.coins == "together", changed, chances, factor, sigmas, order, factors, grey, sigma, solarize)
        drawn = {"order": order, "factors": factors, "grey": grey, "sigma": sigma, "solarize": solarize}
        return {name: torch.from_numpy(value) for name, value in drawn.items()}

    def _strengths(self) -> tuple[float, float, float, float]:
        return self.brightness, self.contrast, self.saturation, self.hue

    def _scale(self, size: Size) -> float:
        """Of the blur."""
        return min(size) / self.blur_reference if self.blur_reference else 1.0

    @hookimpl
    @torch.no_grad()
    def apply_augment(self, pixels: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The same images alone and in a batch, on a CPU and on an accelerator; float32 ones keep their fractions.

        Which image takes which operation is settled on the CPU: leave `params` there, so that nothing waits for the device.  Color images of
        8 bits on a CPU go through `compiled`, whose blur sums in another order: of a hundred thousand values one is rounded the other way.
        """
        draws, whole = {name: value.cpu() for name, value in params.items()}, pixels.dtype == torch.uint8
        if self.grey_first:
            pixels = _greyed(pixels, _chosen(draws["grey"]), whole)
            draws["grey"] = torch.zeros_like(draws["grey"])
        if pixels.device.type != "cpu":
            return _batched(pixels, draws, whole)
        if whole and pixels.shape[1] == 3:
            return _compiled(pixels, draws)
        alone = [{name: value[b : b + 1] for name, value in draws.items()} for b in range(len(pixels))]
        return torch.cat([_batched(pixels[b : b + 1], own, whole) for b, own in enumerate(alone)])  # in a core's cache, and whatever else is there


def _greyed(pixels: Tensor, images: list[int], whole: bool) -> Tensor:
    """A copy in which some of the images [B, 3, h, w] are grey, in three equal channels."""
    out = pixels.clone()
    if images:
        out[images] = color.luma(pixels[images].float(), whole).to(pixels.dtype)
    return out


def _compiled(pixels: Tensor, draws: dict[str, Tensor]) -> Tensor:
    from twinview_byol.compiled import colors, finish  # here: numba takes a second to import, and only data workers need it

    out = torch.empty(pixels.shape, dtype=torch.uint8)
    order, factors, grey, sigma, solarize = (draws[name].numpy() for name in ("order", "factors", "grey", "sigma", "solarize"))
    taps, starts = own_kernels(sigma, (pixels.shape[2], pixels.shape[3]))
    colors(pixels.contiguous().numpy(), order, factors, factors != np.array(NEUTRAL, np.float32), grey, out.numpy())
    finish(out.numpy(), taps, starts, solarize, grey)
    return out


def _batched(pixels: Tensor, draws: dict[str, Tensor], whole: bool) -> Tensor:
    pixels = pixels if whole else pixels.clone()  # float() below makes no other of them
    x = pixels.float()
    for i, images in _jitter_groups(draws["order"], draws["factors"]):
        x = _on(x, images, partial(JITTER[i], whole=whole), draws["factors"][:, i, None, None, None])
    x = _on(x, _chosen(draws["grey"]), partial(color.luma, whole=whole))
    blurred = _chosen(draws["sigma"] > 0)
    if blurred:
        x = _on(x, blurred, partial(gaussian_blur, whole=whole), gaussian_kernels(draws["sigma"], (pixels.shape[2], pixels.shape[3])))
    if not whole:
        return _on(x.expand(pixels.shape).contiguous(), _chosen(draws["solarize"]), _solarize)
    out = torch.empty_like(pixels).copy_(x.to(torch.int16))  # by way of int16: half the time.  One channel if all are grey
    return _on(out, _chosen(draws["solarize"]), _solarize)


def _jitter_groups(order: Tensor, factors: Tensor) -> list[tuple[int, list[int]]]:
    """(operation, the images that take it next), turn by turn, of `order` and `factors` [B, 4]."""
    groups: dict[tuple[int, int], list[int]] = {}
    for image, (operations, strengths) in enumerate(zip(order.tolist(), factors.tolist())):
        for turn, i in enumerate(operations):
            if strengths[i] != NEUTRAL[i]:
                groups.setdefault((turn, i), []).append(image)
    return [(i, groups[turn, i]) for turn, i in sorted(groups)]


def _chosen(coins: Tensor) -> list[int]:
    return [image for image, coin in enumerate(coins.tolist()) if coin]


def _on(x: Tensor, images: list[int], change: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """`change` some of the images [B, ...], each with its own part of `args` [B, ...]."""
    if not images:
        return x
    if len(images) == len(x):
        return change(x, *(a.to(x.device, non_blocking=True) for a in args))
    at = torch.tensor(images)
    here = at.to(x.device, non_blocking=True)
    x[here] = change(x[here], *(a[at].to(x.device, non_blocking=True) for a in args))
    return x


def _solarize(x: Tensor) -> Tensor:
    """Invert the values from 128 on: of a uint8 and its complement, exactly one is below 128."""
    return torch.minimum(x, x.bitwise_not() if x.dtype == torch.uint8 else color.TOP - x)
