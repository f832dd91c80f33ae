"""Activation checkpointing (Chen et al. 2016): a block keeps what it was given, and computes the rest again in the backward pass."""
from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, compiled: bool = False) -> None:
    """Compute `block` again in the backward pass, from now on and wherever gradients are recorded; otherwise it is what it was.

    Results, gradients and buffers are those of the block itself: random draws, autocast and the choice of attention kernels are repeated, and
    buffers (running statistics) change once.  Names of parameters stay, hooks and copies work.  A collective inside it runs twice on every rank.
    `compiled`: in a form that torch.compile takes into one graph.  It is for blocks without buffers: those would change twice.
    """
    cast(Any, block).__class__ = _recomputed(cast(Any, type(block)), _ToCompile if compiled else _Recomputed)


class _Recomputed(nn.Module):
    """In front of a block's own class."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(*inputs, **named)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _AsBefore(self)), **named)


class _ToCompile(nn.Module):
    """The same for the compiler, which repeats draws and kernels itself and knows no context around the second pass."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        run = super().forward
        return checkpoint(run, *inputs, use_reentrant=False, **named) if torch.is_grad_enabled() else run(*inputs, **named)


@lru_cache
def _recomputed(kind: type[nn.Module], front: type[nn.Module]) -> type[nn.Module]:
    return kind if issubclass(kind, (_Recomputed, _ToCompile)) else type(kind.__name__, (front, kind), {})


class _AsBefore(AbstractContextManager[None]):
    """Inside it the block stands as it did when this was made; what it does to its buffers is forgotten.  May be entered again.

    Other tensors stand in for the buffers: written to in place, they would invalidate what autograd has saved of them.
    """

    def __init__(self, block: nn.Module) -> None:
        places = [(m._buffers, name) for m in block.modules() for name in m._buffers]
        self.before = [(buffers, name, value.clone()) for buffers, name in places if (value := buffers[name]) is not None]
        self.kernels = _attention_kernels()
        self.undo = ExitStack()

    def __enter__(self) -> None:
        for buffers, name, value in self.before:
            self.undo.callback(buffers.__setitem__, name, buffers[name])
            buffers[name] = value.clone()
        self.undo.enter_context(sdpa_kernel(self.kernels))

    def __exit__(self, *_: object) -> None:
        self.undo.close()


def _attention_kernels() -> list[SDPBackend]:
    """Those that scaled_dot_product_attention may choose from."""
    flags = torch.backends.cuda
    enabled = {
        SDPBackend.MATH: flags.math_sdp_enabled,
        SDPBackend.FLASH_ATTENTION: flags.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: flags.mem_efficient_sdp_enabled,
        SDPBackend.CUDNN_ATTENTION: flags.cudnn_sdp_enabled,
    }
    return [kernel for kernel, is_enabled in enabled.items() if cast(Any, is_enabled)()]
