"""What every export needs: images to compare on, and the encoder as its own library names it."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from twinview.analysis.own_files import marked, refuse_others
from twinview.analysis.targets import Target
from twinview.data.dataset.open import open_data
from twinview.data.dataset.read import BadSample
from twinview.data.formats.decode import PixelFormat
from twinview.data.loading.factory import PlainImages
from twinview.engine.run_recipe import run_recipe
from twinview.errors import CheckpointError, TwinviewError
from twinview.published import odd_options
from twinview.values import Features, Published, Size

COUNT = 4  # images that an export is compared on, at each size
NEAR = 1e-3  # of the encoder's largest value: what is further off is another network


class Checked(NamedTuple):
    """How far what was loaded back is from the encoder."""

    by: str  # the library that loaded it, with its version; "" where it is not installed
    difference: float  # the largest, over all images and outputs; NaN where nothing was run
    scale: float  # the largest value of the encoder's own outputs
    on: str  # what it was compared on

    def text(self) -> str:
        """A line for a person."""
        if not self.by:
            return self.on
        return f"loaded back by {self.by}: {self.off()}, on {self.on}"

    def off(self) -> str:
        """How far it is off, in words."""
        return f"largest difference {self.difference:.2g}, of values up to {self.scale:.2g}"

    def near(self) -> bool:
        """Whether it is the same network, as far as it was run; never where a value is no number."""
        return not self.by or self.difference <= NEAR * self.scale

    def judged(self, to: str) -> Checked:
        """Itself.  Raises CheckpointError where what was loaded back is another network."""
        if not self.near():
            said = f"{self.by} loads back another network than was written: {self.off()}, on {self.on}"
            raise CheckpointError(f"to={to}: {said}. Nothing is kept. Write to=safetensors.")
        return self


@attrs.frozen(kw_only=True)
class Exported:
    """What was written, how it is loaded, and whether it gives the same."""

    paths: tuple[Path, ...]
    code: tuple[str, ...]  # lines of Python that load it
    checked: Checked
    notes: tuple[str, ...] = ()


class Trial(NamedTuple):
    """Images of one size, normalized, and what the encoder makes of them."""

    images: Tensor  # [B, C, H, W]
    own: Features


def other_size(size: Size, stride: int) -> Size:
    """Another size that an encoder of this stride takes without filling up: one stride more in height, two in width, at least."""
    return -(-size[0] // stride) * stride + stride, -(-size[1] // stride) * stride + 2 * stride


@torch.no_grad()
def trials(target: Target, sizes: list[Size]) -> tuple[list[Trial], str]:
    """Images of the run's own data at each size, and what the encoder gives for them; and words for what they are."""
    pixels, said = _pixels(target, sizes)
    found = [Trial(x, target.encoder(x)) for x in (target.transform.normalize(images) for images in pixels)]
    at = " and ".join(f"{h}x{w}" for h, w in sizes)
    return found, f"{len(pixels[0])} {said} at {at}"


def _pixels(target: Target, sizes: list[Size]) -> tuple[list[Tensor], str]:
    if target.run is not None:
        try:
            recipe = run_recipe(target.run)
            shards = open_data(recipe.data).preview(COUNT)
            places = [i * len(shards) // COUNT for i in range(COUNT)]
            batches = [PlainImages(shards, PixelFormat.of(recipe.data), size, (), True)(places)[0].images for size in sizes]
            if len(batches[0]):
                return batches, "images of the run's data"
        except (TwinviewError, BadSample):
            pass
    draws = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (COUNT, target.transform.channels, *size), generator=draws, dtype=torch.uint8) for size in sizes]
    return noise, "pictures of noise, since the run's data is not here,"


def refuse_others_at(out: Path) -> None:
    """Raises CheckpointError where `out` is a file that `twinview export` did not write."""
    refuse_others("twinview export", [out], marked, CheckpointError)


def difference(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The largest difference of (own, theirs), and the largest of the own values; NaN where any is.  Raises ValueError for other shapes."""
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"outputs of shape {list(b.shape)}, where the encoder gives {list(a.shape)}")
    off, own = ([x.abs().max() for x in values] for values in ([a.float() - b.float() for a, b in pairs], [a.float() for a, _ in pairs]))
    return float(torch.stack(off).max()), float(torch.stack(own).max())  # not Python's max, which passes over NaN


def published(target: Target, size: Size) -> Published | None:
    """The encoder as the library that it comes from names it; None where no library builds it.  Raises CheckpointError for a size that it refuses."""
    ask: Any = getattr(target.encoder, "published", None)
    try:
        found: Published | None = ask(size) if ask else None
    except ValueError as e:
        raise CheckpointError(f"size: {e}.") from None
    return found


def resnet_of(target: Target, size: Size, to: str) -> tuple[str, Mapping[str, Tensor], list[bool]]:
    """Name, tensors under torchvision's names, and which of the last three stages are dilated, of a ResNet.  Raises CheckpointError for others."""
    found = published(target, size)
    named = re.fullmatch(r"torchvision\.models\.(\w+)\((?:replace_stride_with_dilation=(\[.*\]))?\)", found.load) if found else None
    if found is None or not named:
        what = f"takes torchvision's ResNets, and {target.use}{odd_options(target.encoder)} is none that torchvision builds"
        raise CheckpointError(f"to={to}: {what}. Write to=safetensors or onnx.")
    return named[1], found.tensors, [word.strip() == "True" for word in named[2].strip("[]").split(",")] if named[2] else [False] * 3


class Outputs(nn.Module):
    """Images -> what most users need, as plain tensors: `pooled` and `cells`, as far as the encoder gives them."""

    def __init__(self, encoder: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """In the order of `names`."""
        features: Features = self.encoder(images)
        return tuple(features.at(name) for name in self.names)


def plain_names(trial: Trial) -> tuple[str, ...]:
    """Of `pooled` and `cells` those that there are."""
    return tuple(name for name in ("pooled", "cells") if getattr(trial.own, name) is not None)


def compared(trials_: list[Trial], names: tuple[str, ...], theirs: Callable[[Tensor], Any]) -> tuple[float, float]:
    """`difference` over all trials of outputs by name, in batches of two lengths."""
    pairs = []
    for trial in trials_:
        for n in (len(trial.images), len(trial.images) - 1):
            for name, value in zip(names, theirs(trial.images[:n])):
                pairs.append((trial.own.at(name)[:n], value if isinstance(value, Tensor) else torch.as_tensor(value)))
    return difference(pairs)


def installed(package: str) -> str:
    """`onnxruntime 1.20.0`; "" where it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
