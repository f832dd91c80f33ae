"""Encoders for images of any number of channels: built by their libraries, started from weights of three, published for them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import adapt_input_conv

from twinview.errors import CheckpointError
from twinview_timm import Encoder
from twinview_torchvision import ResNet

VIT = {"name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 1, "heads": 2, "img_size": 32}
KINDS: dict[str, tuple[type, dict[str, Any], str]] = {  # name -> part, options, the first kernel's name
    "resnet": (ResNet, {"name": "resnet18"}, "conv1.weight"),
    "small stem": (ResNet, {"name": "resnet18", "stem": "small"}, "conv1.weight"),
    "timm": (Encoder, {"name": "test_convnext"}, "stem.0.weight"),
    "vit": (Encoder, VIT, "patch_embed.proj.weight"),
}


def make(kind: str, channels: int, **options: Any) -> Any:
    cls, given, _ = KINDS[kind]
    part: Any = cls(**given, **options)
    return part.make_encoder(channels=channels, **({"masked": True} if cls is Encoder else {})).eval()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_three_channels_start_it_as_timm_would(kind: str, channels: int, tmp_path: Path) -> None:
    color = make(kind, 3)
    torch.save(color.state_dict(), tmp_path / "color.pt")
    encoder, first = make(kind, channels, weights=str(tmp_path / "color.pt")), KINDS[kind][2]
    state, source = encoder.state_dict(), color.state_dict()
    assert torch.allclose(state[first], adapt_input_conv(channels, source[first]), atol=1e-7)
    assert all(torch.equal(state[name], source[name]) for name in source if name != first)
    images = torch.randn(2, 1, 32, 32)
    if channels == 1:
        with torch.no_grad():
            assert torch.allclose(encoder(images).pooled, color(images.expand(-1, 3, -1, -1)).pooled, atol=1e-4), "a grey image is seen as before"
    assert encoder(images.expand(-1, channels, -1, -1), torch.zeros(2, encoder.spec.grid((32, 32))[0] ** 2, dtype=torch.bool)).cells.shape[0] == 2


def test_weights_of_another_number_of_channels_do_not_fit(tmp_path: Path) -> None:
    torch.save(make("resnet", 5).state_dict(), tmp_path / "five.pt")
    assert make("resnet", 5, weights=str(tmp_path / "five.pt")).conv1.weight.shape == (64, 5, 7, 7)
    with pytest.raises(CheckpointError, match=r"it has conv1\.weight \(64, 5, 7, 7\), not \(64, 1, 7, 7\)"):
        make("resnet", 1, weights=str(tmp_path / "five.pt"))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_a_resnet_of_torchvisions_loads_into_timms(name: str) -> None:
    encoder = ResNet(name=name).make_encoder(channels=2).eval()
    published: Any = encoder.published((64, 64))  # type: ignore[operator]
    assert (published.library, published.load) == ("timm", f"timm.create_model('{name}', in_chans=2, num_classes=0)")
    theirs = eval(published.load, {"timm": timm}).eval()
    missing, unexpected = theirs.load_state_dict(published.tensors, strict=False)
    assert not missing and not unexpected
    images = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(images), encoder(images).pooled, atol=1e-4)
    assert ResNet(name=name, stride=16).make_encoder(channels=2).published((64, 64)) is None  # type: ignore[operator]


def test_three_channels_are_built_as_they_always_were() -> None:
    """The same random start, and nothing more in the expression that builds them."""
    torch.manual_seed(3)
    made = make("resnet", 3)
    torch.manual_seed(3)
    import torchvision

    assert torch.equal(made.conv1.weight, torchvision.models.resnet18().conv1.weight)
    assert "in_chans" not in make("timm", 3).published((32, 32)).load + make("vit", 3).published((32, 32)).load
