from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from twinview.errors import RecipeError
from twinview.ops.maps import hide_pixels
from twinview.values import Features
from twinview_timm import Encoder

NAMES = ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]


def make(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return Encoder(**options).make_encoder(masked=True, channels=3)


def test_what_each_kind_gives() -> None:
    assert Encoder(name="convnext_atto").traits().gives == {"cells", "pooled", "levels", "hides", "hides_any", "recomputable", "any_channels"}
    assert Encoder(name="deit_tiny_patch16_224").traits().gives == {"cells", "pooled", "tokens", "hides", "recomputable", "any_channels"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (75, 49)])
def test_spec_is_what_comes_out_and_gradients_reach_everything(name: str, size: tuple[int, int]) -> None:
    encoder = make(name=name, cells="c4", drop_path=0.0 if name == "mobilenetv3_small_050" else 0.1)
    spec = encoder.spec
    assert list(spec.levels) == ["c2", "c3", "c4", "c5"] and [level.stride for level in spec.levels.values()] == [4, 8, 16, 32]
    out: Features = encoder(torch.randn(2, 3, *size))
    assert out.cells is out.levels["c4"] and out.pooled is not None and out.pooled.shape == (2, spec.pooled)
    assert out.cells.shape[2:] == spec.grid(size)
    for level, (channels, stride) in spec.levels.items():
        assert out.levels[level].shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    total: Any = torch.stack([(x * torch.randn_like(x)).sum() for x in out.levels.values()]).sum()
    total.backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_timms_network(name: str) -> None:
    encoder, images = make(name=name).eval(), torch.randn(2, 3, 64, 64)
    own = encoder.published((64, 64))
    theirs = eval(own.load, {"timm": timm}).eval()
    missing, unexpected = theirs.load_state_dict(own.tensors, strict=own.strict)
    assert not unexpected and all("norm" in k or "head" in k or "bn" in k for k in missing)
    with torch.no_grad():
        found = theirs.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(encoder(images).cells, found)


def test_hidden_cells_are_zeroed_at_both_ends() -> None:
    encoder, images = make(name="resnet18", cells="c4").eval(), torch.randn(2, 3, 64, 48)
    hidden = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        out, blank = encoder(images, hidden), encoder(hide_pixels(images, hidden, 16))
    gone = hidden.view(2, 1, 4, 3).expand_as(out.cells)
    assert not out.cells[gone].any() and torch.equal(out.cells[~gone], blank.cells[~gone])
    assert torch.equal(out.pooled, blank.pooled) and torch.equal(out.levels["c5"], blank.levels["c5"])


def test_a_copy_is_a_network_of_its_own() -> None:
    encoder, images = make(name="convnext_atto").eval(), torch.randn(1, 3, 32, 32)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder(images).pooled
        for p in other.parameters():
            p.zero_()
        assert torch.equal(encoder(images).pooled, before) and not other(images).pooled.any()


def test_weights_of_timm_and_of_a_run(tmp_path: Path) -> None:
    for name in ("convnext_atto", "resnet18"):
        whole = timm.create_model(name)
        torch.save(whole.state_dict(), tmp_path / "timm.pth")
        encoder = make(name=name, weights=str(tmp_path / "timm.pth"))
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in encoder.state_dict().items())
        torch.save({f"online.encoder.{k}": v for k, v in encoder.state_dict().items()}, tmp_path / "run.pt")
        again = make(1, name=name, weights=str(tmp_path / "run.pt")).state_dict()
        assert all(torch.equal(v, again[k]) for k, v in encoder.state_dict().items())


def test_what_cannot_be_is_one_line() -> None:
    for options, message in (({"cells": "c6"}, "'resnet18' has no level 'c6'"), ({"img_size": 64}, "unexpected keyword argument 'img_size'")):
        with pytest.raises(RecipeError, match=message) as error:
            make(name="resnet18", **options)
        assert str(error.value).startswith("[encoder] timm.encoder") and "\n" not in str(error.value)
    with pytest.raises(RecipeError, match="takes images of 224x224 alone, not of 64x64. Set img_size or the size of the views"):
        make(name="xcit_nano_12_p16_224")(torch.zeros(1, 3, 64, 64))
    with pytest.raises(RecipeError, match="the map c3 of 'pit_ti_224' is 27x27 for images of 224x224, not one cell for every 8 pixels"):
        make(name="pit_ti_224")(torch.zeros(1, 3, 224, 224))


def test_a_network_of_one_size_is_not_filled_up() -> None:
    out = make(name="levit_128s")(torch.zeros(2, 3, 224, 224))
    assert {name: tuple(x.shape[2:]) for name, x in out.levels.items()} == {"c4": (14, 14), "c5": (7, 7), "c6": (4, 4)}
