"""Photometry of cameras: gamma and exposure."""
from __future__ import annotations

import numpy as np
import torch
from attrs import field
from attrs.validators import ge
from torch import Tensor

from twinview import hookimpl, part
from twinview.values import Size, Traits

TOP = 255.0


@part
class Gamma:
    """Pixels p of 0..1 become gain * p ** gamma, one gamma and one gain for a view."""

    gamma: float = field(default=0.5, validator=ge(0))  # exponents are exp(u), u uniform in -x .. x
    gain: float = field(default=0.2, validator=ge(0))  # uniform in 1 - x .. 1 + x

    @hookimpl
    def traits(self) -> Traits:
        """Takes images of any number of channels, float32 ones too."""
        return Traits(gives=frozenset({"any_channels", "deep"}))

    @hookimpl
    def draw_augment(self, view: int, size: Size, rng: np.random.Generator) -> dict[str, Tensor]:
        """`gamma` and `gain`, two numbers."""
        numbers = {"gamma": np.exp(rng.uniform(-self.gamma, self.gamma)), "gain": rng.uniform(1 - self.gain, 1 + self.gain)}
        return {name: torch.tensor(number, dtype=torch.float32) for name, number in numbers.items()}

    @hookimpl
    def apply_augment(self, pixels: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Pixels [B, C, h, w] of 0..255, uint8 or float32, -> the same; float32 ones are not rounded."""
        gamma, gain = (params[name].to(pixels.device).view(-1, 1, 1, 1) for name in ("gamma", "gain"))
        changed = ((pixels.float() / TOP) ** gamma * gain).clamp(0, 1) * TOP
        return changed if pixels.is_floating_point() else changed.round().to(pixels.dtype)
