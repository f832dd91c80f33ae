from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from twinview.ops import soft_cross_entropy, soft_cross_entropy_loss
from twinview.ops.means import weighted_mean


def test_soft_cross_entropy_is_torchs_with_a_target_that_has_no_gradient() -> None:
    p, z = torch.randn(4, 7, 3, 2, requires_grad=True), torch.randn(4, 7, 3, 2, requires_grad=True)
    found = soft_cross_entropy(p, z)
    assert torch.allclose(found, F.cross_entropy(p, z.softmax(1), reduction="none"), atol=1e-6)
    soft_cross_entropy_loss(p, z).backward()  # type: ignore[no-untyped-call]
    assert z.grad is None and p.grad is not None
    assert torch.allclose(p.grad, (p.softmax(1) - z.softmax(1)).detach() / 24, atol=1e-7)


def test_a_weight_leaves_cells_out() -> None:
    p, z, weight = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4), torch.zeros(2, 4, 4)
    weight[0, :2] = 1
    assert soft_cross_entropy_loss(p, z, weight) == pytest.approx(float(soft_cross_entropy(p, z)[0, :2].mean()))
    assert float(weighted_mean(p[:, 0], torch.zeros(2, 4, 4))) == 0


def test_low_precision_is_reckoned_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        p, z = torch.randn(2, 5, 3, 3).bfloat16(), torch.randn(2, 5, 3, 3).bfloat16()
        assert soft_cross_entropy(p, z).dtype == torch.float32
    assert soft_cross_entropy(p.double(), z.double()).dtype == torch.float64
