"""byol.photometry on images of 16 bits, and of other numbers of channels than three."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from twinview_byol import color
from twinview_byol.blur import gaussian_blur, gaussian_kernels
from twinview_byol.photometry import Photometry

GREYS: dict[str, Any] = {"saturation": 0.0, "hue": 0.0, "grey": 0.0}


def images(n: int, channels: int, side: int = 24) -> Tensor:
    """Smooth pictures with noise, [n, C, side, side] float32 of 0..255."""
    g = torch.Generator().manual_seed(channels)
    x = torch.linspace(20, 200, side).expand(n, channels, side, side) * torch.rand(n, channels, 1, 1, generator=g)
    return (x + 10 * torch.rand(n, channels, side, side, generator=g)).clamp(0, 255)


def draws(n: int, view: int = 1, **options: Any) -> tuple[Photometry, dict[str, Tensor]]:
    part, rng = Photometry(**options), np.random.default_rng(5)
    many = [part.draw_augment(view, (24, 24), rng) for _ in range(n)]
    return part, {name: torch.stack([d[name] for d in many]) for name in many[0]}


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (color.brightness, reference.adjust_brightness, 0, 2),
        (color.contrast, reference.adjust_contrast, 0, 2),
        (color.saturation, reference.adjust_saturation, 0, 2),
        (color.hue, reference.adjust_hue, -0.5, 0.5),
    ],
)
def test_factors_are_torchvisions_on_floats(ours: Any, theirs: Any, low: float, high: float) -> None:
    """Its images are 0..1."""
    x = images(12, 3)
    x[:3] = x[:3, :1]
    factors = torch.linspace(low, high, len(x))
    expected = torch.stack([theirs(image / 255, float(f)) * 255 for image, f in zip(x, factors)])
    assert torch.allclose(ours(x.clone(), factors[:, None, None, None], whole=False), expected, atol=2e-2)


def test_one_channel_has_the_contrast_of_torchvisions_grey_images() -> None:
    x = images(8, 1)
    factors = torch.linspace(0, 2, len(x))
    expected = torch.stack([reference.adjust_contrast(image.to(torch.uint8), float(f)) for image, f in zip(x, factors)])
    assert (color.contrast(x.floor(), factors[:, None, None, None]) - expected.float()).abs().max() <= 1


def test_each_of_many_channels_keeps_its_mean_under_contrast() -> None:
    x = images(6, 5) * 0.4 + 70  # so that nothing is cut off
    changed = color.contrast(x.clone(), torch.linspace(0.5, 1.5, 6)[:, None, None, None], whole=False)
    assert torch.allclose(changed.mean((2, 3)), x.mean((2, 3)), atol=1e-3)


def test_blur_keeps_fractions() -> None:
    x, sigma = images(6, 2), torch.tensor([0.5, 1.0, 1.5, 2.0, 0.1, 0.7])
    blurred = gaussian_blur(x.clone(), gaussian_kernels(sigma, (24, 24)), whole=False)
    expected = torch.stack([reference.gaussian_blur(image, [15, 15], [float(s)] * 2) for image, s in zip(x, sigma)])
    assert torch.allclose(blurred, expected, atol=0.2) and not torch.equal(blurred, blurred.round())


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_deep_images_come_out_as_those_of_8_bits_but_for_their_fractions(channels: int) -> None:
    """Each operation cuts off a fraction of at most 1, which later ones may double; the threshold of solarize stands between whole numbers."""
    x = images(64, channels).floor()
    part, d = draws(64, solarize=[0.5], **({} if channels == 3 else GREYS))
    deep, bytes_ = part.apply_augment(x, d), part.apply_augment(x.to(torch.uint8), d).float()
    assert deep.dtype == torch.float32 and deep.shape == x.shape
    assert (deep - bytes_).abs().mean() < 1.5 and float(((deep - bytes_).abs() > 6).float().mean()) < 0.01
    assert not torch.equal(deep, deep.round()) and deep.min() >= 0 and deep.max() <= 255.001


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_alone_as_in_a_batch_and_the_input_stays(channels: int, kind: torch.dtype) -> None:
    x = images(40, channels).to(kind)
    before = x.clone()
    part, d = draws(40, **({} if channels == 3 else GREYS))
    batch = part.apply_augment(x, d)
    alone = torch.cat([part.apply_augment(x[i : i + 1], {k: v[i : i + 1] for k, v in d.items()}) for i in range(40)])
    assert (batch.float() - alone.float()).abs().max() <= (1 if kind == torch.uint8 else 1e-3) and torch.equal(x, before)
    grey = Photometry()
    same = draws(40)[1] | {"factors": torch.tensor([1.0, 1, 1, 0]).expand(40, 4), "sigma": torch.zeros(40), "solarize": torch.zeros(40, dtype=torch.bool)}
    out = grey.apply_augment(x, same | {"grey": torch.full((40,), channels == 3)})
    assert out.shape == x.shape and out.is_contiguous() and (torch.equal(out, x) if channels != 3 else bool((out == out[:, :1]).all()))


def test_solarize_of_fractions() -> None:
    x = torch.tensor([0.0, 127.4, 127.5, 127.6, 255.0]).view(1, 1, 1, 5).repeat(1, 1, 5, 1)
    part, d = draws(1, jitter=0.0, blur=[0.0], solarize=[1.0], **GREYS)
    assert torch.allclose(part.apply_augment(x, d)[0, 0, 0], torch.tensor([0.0, 127.4, 127.5, 127.4, 0.0]))


def test_what_it_takes() -> None:
    assert Photometry().traits().gives == {"deep"} and Photometry(**GREYS).traits().gives == {"deep", "any_channels"}
    for key in GREYS:
        assert "any_channels" not in Photometry(**{**GREYS, key: 0.1}).traits().gives
