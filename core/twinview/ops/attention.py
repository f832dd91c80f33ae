"""Attention by plain matrix products, for low precision on a CPU, where torch's own kernels lose time."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

_KERNEL: Callable[..., Tensor] = F.scaled_dot_product_attention


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of [..., T, D], in float32 inside, as torch's SDPBackend.MATH rounds it: both factors are scaled by D^-1/4.

    That kernel copies each factor twice, once to widen it and once to lay it out, and looks for rows that are masked as a whole.
    """
    device = q.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
    kind = torch.promote_types(low, torch.float32)
    with torch.autocast(device, enabled=False):
        q, k, v = (x.to(low).to(kind, memory_format=torch.contiguous_format) for x in (q, k, v))
        scale = q.shape[-1] ** -0.25
        found: Tensor = ((q * scale) @ (k * scale).mT).softmax(-1) @ v
        return found.to(low)


class PlainAttention(TorchFunctionMode):
    """Inside it `scaled_dot_product_attention` without options (masks, dropout, ...) is `plain_attention`; with them it is torch's."""

    @staticmethod
    def entered() -> bool:
        """Whether this is inside one."""
        return any(isinstance(mode, PlainAttention) for mode in _get_current_function_mode_stack())

    def __torch_function__(
        self, func: Callable[..., Any], types: Collection[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch asks for every function of its own."""
        named = kwargs or {}
        if func is _KERNEL and len(args) == 3 and not any(isinstance(value, Tensor) or value for value in named.values()):
            return plain_attention(*args)
        return func(*args, **named)
