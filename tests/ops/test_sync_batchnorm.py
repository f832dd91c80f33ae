from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from twinview.ops.sync_batchnorm import SyncBatchNorm, synchronize_batchnorm


def test_an_activation_within_the_norm_is_kept_and_so_are_the_names() -> None:
    torch.manual_seed(0)
    plain: Any = nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    made = synchronize_batchnorm(copy.deepcopy(plain))
    assert [type(m) for m in made.children()] == [nn.Conv2d, SyncBatchNorm, nn.Conv2d, SyncBatchNorm]
    assert made.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(4, 3, 9, 9)
    for train in (True, False):
        torch.testing.assert_close(made.train(train)(x), plain.train(train)(x))
    assert (made[1](made[0](x)) >= 0).all()  # type: ignore[index]
    assert synchronize_batchnorm(made[1]) is made[1]  # type: ignore[index]
