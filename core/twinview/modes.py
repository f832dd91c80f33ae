"""Context managers for train or eval mode, and for the attention kernel."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

from torch import nn


@contextlib.contextmanager
def in_mode(module: nn.Module, train: bool, *, keep: bool) -> Iterator[None]:
    """`module` in train or eval mode, and as it was afterwards.  `keep`: its buffers too, what BatchNorm wrote there."""
    modes = {m: m.training for m in module.modules()}
    kept = {name: value.clone() for name, value in module.named_buffers()} if train and keep else {}
    module.train(train)
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for name, value in module.named_buffers():
            if name in kept:
                value.copy_(kept[name])


def attention(plain: bool, compiled: bool = False) -> contextlib.AbstractContextManager[None]:
    """`plain`: attention by matrix products; in bf16 the fused kernel's backward pass takes three times as long on a CPU.

    `compiled`: by torch's own, whose pieces the compiler joins itself.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from twinview.ops.attention import PlainAttention

    stack = contextlib.ExitStack()
    if plain:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # for what has masks or other options, too
    if plain and not compiled:
        stack.enter_context(PlainAttention())
    return cast(contextlib.AbstractContextManager[None], stack)
