from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from twinview import recipe
from twinview.errors import RecipeError
from twinview.ops.maps import hide_pixels
from twinview.values import Features
from twinview_torchvision import NAMES, ResNet, parts


def encode(size: tuple[int, int] = (64, 64), *, batch: int = 2, seed: int = 0, **options: Any) -> tuple[Any, Tensor, Features]:
    torch.manual_seed(seed)
    encoder: Any = ResNet(**options).make_encoder(channels=3)
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        return encoder, images, encoder.eval()(images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "resnet34", "stride": 16},
        {"name": "resnet50", "stride": 8},
        {"cells": "c3", "stem": "small"},
        {"stem": "small", "stride": 2},
        {"stem": "small", "width": 16},
        {"name": "resnet50", "width": 24, "stride": 8},
        {"fpn": True, "cells": "p3", "fpn_channels": 24},
        {"fpn": True, "cells": "p2", "stride": 16, "fpn_channels": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (75, 49), (33, 90)])
def test_spec_is_what_comes_out(options: dict[str, Any], size: tuple[int, int]) -> None:
    encoder, _, out = encode(size, **options)
    spec = encoder.spec
    assert out.cells is not None and out.pooled is not None
    assert out.cells.shape == (2, spec.cells.channels, *spec.grid(size))
    assert out.pooled.shape == (2, spec.pooled)
    assert list(out.levels) == list(spec.levels)
    for name, level in spec.levels.items():
        assert out.levels[name].shape == (2, level.channels, -(-size[0] // level.stride), -(-size[1] // level.stride)), name
    assert out.cells is out.levels[str(options.get("cells", "c5"))]
    assert torch.equal(out.pooled, out.levels["c5"].mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_trunk_is_torchvisions(name: str) -> None:
    encoder, images, out = encode((70, 50), name=name)
    official = torchvision.models.get_model(name, weights=None, num_classes=1).eval()
    missing, unexpected = official.load_state_dict(encoder.state_dict(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    official.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(official(images), out.pooled)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_keeps_the_cells_of_the_strided_network(name: str, stride: int) -> None:
    strided, images, coarse = encode((97, 66), name=name, batch=1)
    dilated = ResNet(name=name, stride=stride).make_encoder(channels=3).eval()
    dilated.load_state_dict(strided.state_dict())
    with torch.no_grad():
        fine = dilated(images)
    step = 32 // stride
    torch.testing.assert_close(fine.cells[:, :, ::step, ::step], coarse.cells, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_of_bottlenecks_is_torchvisions(stride: int) -> None:
    encoder, images, out = encode((64, 48), name="resnet50", stride=stride, batch=1)
    official = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, stride == 8, True]).eval()
    official.load_state_dict(encoder.state_dict(), strict=False)
    official.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(official(images), out.pooled)


def test_the_random_start_is_torchs_seed_alone() -> None:
    (a, _, _), (b, _, _), (c, _, _) = encode(seed=3), encode(seed=3), encode(seed=4)
    first, same, other = (dict(e.named_parameters()) for e in (a, b, c))
    assert all(torch.equal(p, same[n]) for n, p in first.items())
    assert not torch.equal(first["layer4.1.conv2.weight"], other["layer4.1.conv2.weight"])


def test_zero_init_residual() -> None:
    encoder, _, _ = encode(name="resnet50", zero_init_residual=True)
    assert all(not v.any() for k, v in encoder.state_dict().items() if k.startswith("layer") and k.endswith("bn3.weight"))


def test_bf16_and_channels_last_agree_with_fp32() -> None:
    encoder, images, exact = encode((64, 48), fpn=True, fpn_channels=16, cells="p3")
    fast = copy.deepcopy(encoder).to(memory_format=torch.channels_last)
    with torch.no_grad():
        same = fast(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(same.cells, exact.cells, rtol=1e-3, atol=1e-4)
        assert same.levels["c5"].is_contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            rough = fast(images.to(memory_format=torch.channels_last))
    assert rough.cells.dtype == torch.bfloat16
    assert exact.pooled is not None
    assert (rough.pooled.float() - exact.pooled).norm() < 0.05 * exact.pooled.norm()


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    encoder = ResNet(fpn=True, cells="p2", fpn_channels=8).make_encoder(channels=3)
    out = encoder(torch.randn(2, 3, 64, 64))
    sum(level.square().mean() for level in out.levels.values()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("options", [{"cells": "c4"}, {"cells": "p3", "fpn": True, "fpn_channels": 8}], ids=str)
def test_hidden_cells_are_zeroed_at_both_ends(options: dict[str, Any]) -> None:
    assert "hides" in ResNet().traits().gives
    encoder, images, seen = encode((64, 40), **options)
    stride = encoder.spec.cells.stride
    assert seen.cells is not None and seen.pooled is not None
    hidden = torch.rand(2, seen.cells[0, 0].numel(), generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        out, blank = encoder(images, hidden), encoder(hide_pixels(images, hidden, stride))
        other = encoder(torch.where(hide_pixels(torch.ones_like(images), hidden, stride) > 0, images, 9.0), hidden)
    gone = hidden.view(2, 1, *seen.cells.shape[2:]).expand_as(out.cells)
    assert not out.cells[gone].any() and torch.equal(out.cells[~gone], blank.cells[~gone])
    assert torch.equal(out.cells, other.cells) and not torch.allclose(out.pooled, seen.pooled)
    assert out.cells is out.levels[options["cells"]]


@pytest.mark.parametrize(
    ("options", "load"),
    [
        ({"name": "resnet18", "fpn": True, "decoder": 8}, "torchvision.models.resnet18()"),
        ({"name": "resnet50", "stride": 8}, "torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])"),
        ({"name": "resnet50", "stride": 16}, "torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])"),
    ],
    ids=str,
)
def test_what_is_published_loads_into_torchvision(options: dict[str, Any], load: str) -> None:
    encoder, images, out = encode(batch=1, **options)
    published = encoder.published((64, 64))
    assert published.load == load and not published.strict
    theirs = eval(load, {"torchvision": torchvision}).eval()
    missing, unexpected = theirs.load_state_dict(published.tensors, strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), out.pooled)


def test_what_torchvision_builds_not_is_not_published() -> None:
    for options, why in (
        ({"stem": "small"}, 'stem = "small"'), ({"stride": 16}, "stride = 16"), ({"width": 32}, "width = 32"),
        ({"width": 32, "stem": "small"}, 'stem = "small" and width = 32'),
    ):  # fmt: skip
        encoder = encode(**options)[0]
        assert encoder.published((64, 64)) is None and encoder.unbuilt == why
    assert encode(name="resnet50", stride=16)[0].unbuilt == encode(fpn=True)[0].unbuilt == ""


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_narrow_network_is_torchvisions_with_fewer_channels_and_starts_alike(name: str) -> None:
    torch.manual_seed(0)
    official = torchvision.models.get_model(name, weights=None).state_dict()
    narrow = ResNet(name=name, width=32, zero_init_residual=True).make_encoder(channels=3).state_dict()
    assert list(narrow) == [key for key in official if not key.startswith("fc.")]
    for key, value in narrow.items():
        wanted = [n // 2 if n > 3 and i < 2 and n != 7 else n for i, n in enumerate(official[key].shape)]
        assert list(value.shape) == wanted, key
        if value.ndim == 4:  # He's start by fan-out: half the channels, twice the variance
            assert value.std() / official[key].std() == pytest.approx(2**0.5, rel=0.1), key
    last = "bn2" if name == "resnet18" else "bn3"
    assert not narrow[f"layer3.1.{last}.weight"].any() and narrow["layer3.1.bn1.weight"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet51"}, "name: torchvision has no ResNet 'resnet51'. Did you mean 'resnet50'?"),
        ({"stride": 4}, "stride: a ResNet with stem = 'imagenet' has no stride 4. Write 32, 16, 8"),
        ({"stride": 32, "stem": "small"}, "has no stride 32. Write 8, 4, 2"),
        ({"cells": "p3"}, "cells: 'p3' is a level of the feature pyramid. Write fpn = true"),
        ({"cells": "c6"}, "cells: wants one of 'c2', 'c3'"),
        ({"fpn_channels": 0}, "fpn_channels must be > 0"),
        ({"depth": 50}, "nothing takes 'depth'"),
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.structure(options, parts()["resnet"], "[encoder] torchvision.resnet")
    assert message in str(error.value) and str(error.value).startswith("[encoder] torchvision.resnet") and "\n" not in str(error.value)


def test_the_names_are_torchvisions() -> None:
    assert set(NAMES) == {n for n in torchvision.models.list_models(torchvision.models) if "resn" in n}
