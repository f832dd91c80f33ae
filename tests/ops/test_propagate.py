from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twinview.ops.propagate import propagate


def maps(channels: int, seed: int) -> Tensor:
    return torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_it_is_the_sum_of_the_paper(gamma: float) -> None:
    x, values = maps(8, 0), maps(5, 1)
    weight = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2))
    y = propagate(x, values, gamma=gamma, weight=weight)
    cells = [(r, c) for r in range(3) for c in range(4)]
    for b in range(2):
        for i in cells:
            expected = torch.zeros(5)
            for j in cells:
                cosine = torch.cosine_similarity(x[b, :, *i], x[b, :, *j], dim=0)
                expected += max(float(cosine), 0.0) ** gamma * weight[b, *j] * values[b, :, *j]
            torch.testing.assert_close(y[b, :, *i], expected, rtol=1e-4, atol=1e-5)


def test_a_permutation_of_the_cells_permutes_the_result() -> None:
    x, values, order = maps(8, 0), maps(8, 1), torch.randperm(12, generator=torch.Generator().manual_seed(3))

    def shuffle(m: Tensor) -> Tensor:
        return m.flatten(2)[..., order].view_as(m)

    torch.testing.assert_close(propagate(shuffle(x), shuffle(values)), shuffle(propagate(x, values)))


def test_a_cell_without_weight_has_no_vote() -> None:
    x, values, weight = maps(8, 0), maps(8, 1), torch.ones(2, 3, 4)
    weight[:, 1, 2] = 0
    other = values.clone()
    other[:, :, 1, 2] = 1e6
    assert torch.equal(propagate(x, values, weight=weight), propagate(x, other, weight=weight))


def test_gradient_reaches_similarity_and_values_and_stays_finite_where_nothing_resembles() -> None:
    x, values = maps(8, 0).requires_grad_(), maps(8, 1).requires_grad_()
    propagate(x, values, gamma=1.0).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and values.grad is not None
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0 and values.grad.abs().sum() > 0


def test_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = propagate(maps(8, 0).bfloat16(), maps(8, 1).bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, propagate(maps(8, 0).bfloat16().float(), maps(8, 1).bfloat16().float()))
