"""Context managers for train or eval mode, and for the attention kernel."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


def attention(plain: bool) -> contextlib.AbstractContextManager[None]:
    """`plain`: attention by matrix products; in bf16 the fused kernel's backward pass takes three times as long on a CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()
    return chosen
