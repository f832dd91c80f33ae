"""Cosine losses: values, weights, gradients, precision."""
from __future__ import annotations

import torch

from twinview.ops import cosine, cosine_loss


def test_cosine_of_vectors_and_of_cells() -> None:
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    by_hand = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert torch.allclose(cosine(a, b), by_hand, atol=1e-6)
    cells = cosine(a[:, :, None, None].expand(5, 8, 2, 3), b[:, :, None, None].expand(5, 8, 2, 3))
    assert cells.shape == (5, 2, 3) and torch.allclose(cells, by_hand[:, None, None].expand(5, 2, 3), atol=1e-6)


def test_a_zero_vector_has_cosine_zero_and_a_finite_gradient() -> None:
    a = torch.zeros(2, 4, requires_grad=True)
    found = cosine(a, torch.randn(2, 4))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert (found == 0).all() and a.grad is not None and torch.isfinite(a.grad).all()


def test_no_gradient_goes_to_the_target() -> None:
    p, z = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    cosine_loss(p, z).backward()  # type: ignore[no-untyped-call]
    assert z.grad is None and p.grad is not None and p.grad.abs().sum() > 0


def test_the_weight_picks_the_cells_that_count() -> None:
    p, z = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    weight = torch.zeros(2, 3, 3)
    weight[0, 1, 2], weight[1, 0, 0] = 1, 3
    found = cosine(p, z)
    assert torch.allclose(cosine_loss(p, z, weight), -(found[0, 1, 2] + 3 * found[1, 0, 0]) / 4)
    assert torch.allclose(cosine_loss(p, z, torch.full((2, 3, 3), 0.2)), cosine_loss(p, z))
    assert cosine_loss(p, z, torch.zeros(2, 3, 3)) == 0


def test_it_is_fp32_under_autocast() -> None:
    a, b = torch.randn(64, 256), torch.randn(64, 256)
    with torch.autocast("cpu", torch.bfloat16):
        found = cosine_loss(a, b)
        low = cosine(a.bfloat16(), b.bfloat16())
    assert found.dtype == low.dtype == torch.float32
    assert torch.equal(found, cosine_loss(a, b))
