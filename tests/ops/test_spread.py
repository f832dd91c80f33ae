from __future__ import annotations

import math

import pytest
import torch

from twinview.ops.spread import effective_rank, feature_spread


def test_isotropic_features_spread_by_one_and_collapsed_ones_by_zero() -> None:
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert feature_spread(x).item() == pytest.approx(1, abs=0.01)
    assert feature_spread(x * 7).item() == pytest.approx(feature_spread(x).item(), rel=1e-5)
    assert feature_spread(x[:1].expand(32, -1)).item() == pytest.approx(0, abs=1e-6)


def test_effective_rank_counts_equal_directions() -> None:
    signs = torch.tensor([[1.0], [-1.0]])
    for rank in (1, 3, 8):
        x = torch.cat([signs * row for row in torch.eye(16)[:rank]])  # `rank` orthogonal directions of equal strength
        assert effective_rank(x + 5).item() == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_unequal_directions_is_the_exponential_of_the_entropy() -> None:
    signs = torch.tensor([[1.0], [-1.0]])
    x = torch.cat([signs * torch.tensor([3.0, 0, 0]), signs * torch.tensor([0, 1.0, 0])])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(x).item() == pytest.approx(expected, rel=1e-5)


def test_equal_features_have_rank_one_and_broken_ones_none() -> None:
    same = torch.rand(1, 512, generator=torch.Generator().manual_seed(1)).expand(64, -1)
    assert effective_rank(same).item() == 1
    assert effective_rank(same + torch.tensor(float("nan"))).isnan()
    assert feature_spread(same[:1]).item() == 0


def test_low_precision_features_are_measured_in_fp32() -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert effective_rank(x).dtype == feature_spread(x).dtype == torch.float32
    assert effective_rank(x).item() == pytest.approx(effective_rank(x.float()).item())
