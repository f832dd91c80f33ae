"""Each operation of the photometry alone against torchvision's on uint8: equal, but for a rounding in a few values of a thousand."""
from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from twinview_byol import color
from twinview_byol.blur import gaussian_blur, gaussian_kernels


def images(n: int = 48, side: int = 32) -> Tensor:
    """Noise, greys, pure colors, and a slow gradient: [n, 3, side, side] uint8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    x[:6] = x[:6, :1]
    x[6:14] = x[6:14] // 128 * 255
    x[14:20] = (torch.linspace(0, 255, side).expand(3, side, side) * torch.rand(6, 3, 1, 1, generator=generator)).to(torch.uint8)
    return x


def unlike(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """Largest difference, and the share of values that differ."""
    difference = (ours.int() - theirs.int()).abs()
    return int(difference.max()), float((difference > 0).float().mean())


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high", "share"),
    [
        (color.brightness, reference.adjust_brightness, 0, 2, 0),
        (color.contrast, reference.adjust_contrast, 0, 2, 1e-3),
        (color.saturation, reference.adjust_saturation, 0, 2, 1e-3),
        (color.hue, reference.adjust_hue, -0.1, 0.1, 1e-3),
        (color.hue, reference.adjust_hue, -0.5, 0.5, 1e-3),
    ],
)
def test_factors(ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], low: float, high: float, share: float) -> None:
    x = images()
    factors = torch.linspace(low, high, len(x))
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(x, factors)])
    most, often = unlike(ours(x.float(), factors[:, None, None, None]), expected)
    assert most <= 1 and often <= share


def test_hue_of_pure_colors() -> None:
    """A third of a turn takes red to green to blue to red; half a turn gives the complement; greys stay."""
    red = torch.tensor([200.0, 20, 20]).view(1, 3, 1, 1)
    turned = [color.hue(red.clone(), torch.full((1, 1, 1, 1), t)).flatten().tolist() for t in (1 / 3, -1 / 3, 0.5, 0.0)]
    assert turned == [[20, 200, 20], [20, 20, 200], [20, 200, 200], [200, 20, 20]]
    grey = torch.arange(256.0).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(color.hue(grey.clone(), torch.full((1, 1, 1, 1), 0.07)), grey)


def test_grey() -> None:
    x = images()
    assert torch.equal(color.luma(x.float()), reference.rgb_to_grayscale(x).float())


def test_blur_against_the_published_kernel() -> None:
    """A 23 px kernel at every width of the published range; ours is shorter where it may be."""
    x = images()
    sigma = torch.linspace(0.1, 2.0, len(x))
    ours = gaussian_blur(x.float(), gaussian_kernels(sigma, (32, 32)))
    most, often = unlike(ours, torch.stack([reference.gaussian_blur(image, [23, 23], [float(s)] * 2) for image, s in zip(x, sigma)]))
    assert most <= 1 and often < 2e-3


def test_blur_of_images_smaller_than_the_kernel() -> None:
    out = gaussian_blur(torch.full((1, 3, 4, 6), 77.0), gaussian_kernels(torch.tensor([2.0]), (4, 6)))
    assert (out == 77).all()


def test_kernels_have_sum_one_and_the_asked_width() -> None:
    sigma = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0])
    kernels = gaussian_kernels(sigma, (224, 224))
    reach = kernels.shape[1] // 2
    assert reach == math.ceil(3.5 * 2) and torch.allclose(kernels.sum(1), torch.ones(5))
    deviation = (kernels * torch.arange(-reach, reach + 1) ** 2).sum(1).sqrt()
    assert torch.allclose(deviation[3:], sigma[3:], rtol=0.005)
    assert kernels[0, reach] == 1 and torch.equal(kernels[3], torch.nn.functional.pad(gaussian_kernels(sigma[3:4], (224, 224))[0], (3, 3)))
