from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm

from twinview.ops.recompute import recompute

Made = dict[str, Tensor]


class Attention(nn.Module):
    """Attention with a parameter of its own, as layer scales are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT[:, None].contiguous()
        y = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return x + self.scale * y.mT.reshape(x.shape)


def net() -> nn.Sequential:
    """Two blocks: running statistics, random draws, and buffers that the forward pass reads too (spectral norm's vectors)."""
    torch.manual_seed(0)
    norm: Callable[[nn.Module], nn.Module] = spectral_norm
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
    return nn.Sequential(first, nn.Sequential(norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8, momentum=None), Attention()))


def trained(made: nn.Sequential, low: bool = False, backends: list[SDPBackend] | None = None) -> Made:
    """Two steps of two passes each: outputs, gradients, buffers, and the random state behind them."""
    torch.manual_seed(1)
    found: Made = {}
    for step in range(2):
        x = torch.randn(4, 3, 6, 6, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low), sdpa_kernel(backends or [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
            y = torch.stack([made(x), made(x.flip(3))])
        torch.randn(1)
        loss: Any = (y.float() * torch.randn(y.shape)).sum()
        loss.backward()
        assert x.grad is not None
        found |= {f"y{step}": y.detach(), f"x{step}": x.grad}
    return found | {n: p.grad for n, p in made.named_parameters() if p.grad is not None} | dict(made.named_buffers()) | {"random": torch.randn(3)}


def recomputed(made: nn.Sequential) -> nn.Sequential:
    for block in made:
        recompute(block)
    return made


@pytest.mark.parametrize("low", [False, True])
def test_all_is_as_without_it_to_the_last_bit(low: bool) -> None:
    expected, found = trained(net(), low), trained(recomputed(net()), low)
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    assert int(expected["0.1.num_batches_tracked"]) == 4  # not 8


def test_the_second_pass_uses_the_attention_of_the_first() -> None:
    """A choice of kernels that ended before the backward pass: another kernel would save other tensors."""
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        expected, found = trained(net(), backends=[kernel]), trained(recomputed(net()), backends=[kernel])
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_fewer_activations_are_kept() -> None:
    def kept(made: nn.Module) -> int:
        saved: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            made(torch.randn(4, 3, 32, 32)).sum()
        return sum(saved.values())

    assert kept(recomputed(net())) < kept(net()) / 4


def test_names_stay_and_copies_have_weights_of_their_own() -> None:
    made = recomputed(net())
    assert made.state_dict().keys() == net().state_dict().keys()
    assert isinstance(made[0], nn.Sequential) and type(made[0]).__name__ == "Sequential"
    other = copy.deepcopy(made)
    with torch.no_grad():
        other[0][0].weight.zero_()  # type: ignore[index]
        other[0][0].bias.zero_()  # type: ignore[index]
    x: Any = torch.randn(2, 3, 6, 6, requires_grad=True)
    assert torch.equal(other.eval()[0](x), torch.zeros(2, 8, 6, 6)) and not torch.equal(made.eval()[0](x), torch.zeros(2, 8, 6, 6))
    kind = type(made[0])
    recompute(made[0])
    assert type(made[0]) is kind, "once is enough"


def test_without_a_gradient_it_is_the_block_itself() -> None:
    made = recomputed(net()).eval()
    with torch.no_grad():
        assert torch.equal(made[0](torch.ones(1, 3, 4, 4)), net().eval()[0](torch.ones(1, 3, 4, 4)))
