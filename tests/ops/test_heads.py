"""MLP heads: layers, biases, and the same function on vectors and on maps."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from twinview.ops import conv_mlp, mlp


def kinds(head: nn.Sequential) -> list[str]:
    return [type(m).__name__ for m in head]


def test_layers() -> None:
    assert kinds(mlp(8, 16, 4)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(conv_mlp(8, 16, 4, layers=3)) == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["Conv2d"]
    assert kinds(mlp(8, 16, 4, layers=1)) == ["Linear"]
    assert kinds(mlp(8, 16, 4, last_norm=True))[-1] == "BatchNorm1d"


def test_a_layer_has_a_bias_unless_a_norm_follows() -> None:
    assert [name for name, _ in mlp(8, 16, 4).named_parameters()] == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert [name for name, _ in mlp(8, 16, 4, last_norm=True).named_parameters()] == ["0.weight", "1.weight", "1.bias", "3.weight"]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_convolution_is_the_mlp_at_every_cell(layers: int) -> None:
    vector, cells = mlp(8, 16, 4, layers=layers), conv_mlp(8, 16, 4, layers=layers)
    cells.load_state_dict({k: v[..., None, None] if v.ndim == 2 else v for k, v in vector.state_dict().items()})
    x = torch.randn(3, 8, 2, 5)
    expected = vector(x.permute(0, 2, 3, 1).reshape(-1, 8)).view(3, 2, 5, 4).permute(0, 3, 1, 2)
    assert torch.allclose(cells(x), expected, atol=1e-5)


def test_heads_without_norms_have_biases_and_a_last_norm_may_have_a_gain_alone() -> None:
    assert kinds(mlp(8, 16, 4, norm=False)) == ["Linear", "ReLU", "Linear"] and kinds(conv_mlp(8, 16, 4, norm=False)) == ["Conv2d", "ReLU", "Conv2d"]
    assert [name for name, _ in mlp(8, 16, 4, norm=False).named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    gain = mlp(8, 16, 4, layers=3, last_norm="gain")
    assert [name for name, p in gain.named_parameters() if p.requires_grad][-2:] == ["6.weight", "7.weight"]
    assert [name for name, _ in mlp(8, 16, 4, last_bias=False).named_parameters()][-1] == "3.weight"
