"""timm's networks, and stochastic depth that leaves the target branch alone."""
from __future__ import annotations

import re
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from torch import Tensor

from twinview.errors import RecipeError


class OnlineDropPath(DropPath):
    """Stochastic depth (Huang et al. 2016) where a gradient is wanted: the target branch is in train mode too, and drops nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...], some samples zeroed and the others scaled up."""
        dropped: Tensor = super().forward(x) if torch.is_grad_enabled() else x  # type: ignore[no-untyped-call]
        return dropped


def create(name: str, **options: Any) -> Any:
    """timm's network of random weights.  Raises RecipeError where it does not take an option."""
    try:
        net = timm.create_model(name, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as e:
        given = f"timm cannot make {name!r} with {call_arguments(options)}: {_line(e)}"
        raise RecipeError(f"[encoder] timm.encoder: {given}. Change or leave out the option that it means.") from None
    for module in list(net.modules()):
        for child, drop in module.named_children():
            if isinstance(drop, DropPath):
                setattr(module, child, OnlineDropPath(drop.drop_prob, drop.scale_by_keep))
    return net


def refuse_torchvision(weights: str) -> None:
    """Raises RecipeError for the name of weights that torchvision publishes: they belong to its networks."""
    if re.fullmatch(r"(IMAGENET1K|IMAGENET22K|COCO)_\w+|DEFAULT", weights):
        other = "weights = \"timm:NAME\" names timm's own"
        raise RecipeError(f"[encoder] weights: {weights!r} are torchvision's. Write use = \"torchvision.resnet\" with them; {other}.")


def call_arguments(options: dict[str, Any]) -> str:
    """As they stand in a call: `img_size=64, depth=2`."""
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
