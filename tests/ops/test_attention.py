from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from twinview.ops.attention import PlainAttention
from twinview.ops.recompute import recompute


class Heads(nn.Module):
    """Attention as timm calls it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x.flip(2), x.roll(1, 2), attn_mask=None, dropout_p=0.0, is_causal=False)


def taken(low: bool, plain: bool, block: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What attention gives, and the gradient of what it was given."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 17, 24, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 3, 17, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=low), sdpa_kernel(SDPBackend.MATH):
        if plain:
            with PlainAttention():
                y = (block or Heads())(x)
        else:
            y = (block or Heads())(x)
    (y.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return y.detach(), x.grad


def test_plain_attention_is_the_kernels_to_the_last_bit() -> None:
    for low, dtype in ((True, torch.float32), (True, torch.bfloat16), (False, torch.float32)):
        ours, theirs = taken(low, True, dtype=dtype), taken(low, False, dtype=dtype)
        assert ours[0].dtype == theirs[0].dtype and torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_masks_and_other_options_are_left_to_torch() -> None:
    q = torch.randn(1, 1, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for options in ({"attn_mask": mask}, {"is_causal": True}, {"scale": 0.5}):
        expected = F.scaled_dot_product_attention(q, q, q, **options)  # type: ignore[arg-type]
        with PlainAttention():
            assert torch.equal(F.scaled_dot_product_attention(q, q, q, **options), expected)  # type: ignore[arg-type]


def test_a_block_that_is_computed_again_takes_the_attention_of_the_first_time() -> None:
    block = Heads()
    recompute(block)
    assert not PlainAttention.entered()
    for ours, theirs in zip(taken(True, True, block), taken(True, True)):
        assert torch.equal(ours, theirs)
