"""A method on the small encoders of the reference tensors, in float64: parts that a test installs as the method `reference`, and how to drive them.

Test files cannot import one another, so that this is installed beside them: the fixture `reference` (tests/plugins/conftest.py) gives the module.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.assembly import assemble
from twinview.engine.optimizer import make_optimizer
from twinview.hooks import hookimpl, part
from twinview.model import LazyStep, Siamese
from twinview.recipe import from_table
from twinview.values import Batch, EncoderSpec, Features, Geometry, Level, Progress, Traits

Tensors = Mapping[str, Tensor]


class TinyNet(nn.Module):
    """conv 3x3 stride 2 - BN - ReLU twice, and the mean over places."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, 2, 1, bias=False), nn.BatchNorm2d(second)
        self.spec = EncoderSpec(pooled=second, cells=Level(second, 4))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images))))))
        return Features(cells=x, pooled=x.mean((2, 3)))


class Through(nn.Module):
    """Images [B, C, 1, 1] are pooled features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 1))

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        return Features(cells=images, pooled=images[:, :, 0, 0])


@part
class Encoder:
    """The small network, or none at all."""

    width: list[int]  # of both layers; of one: the images are the features

    @hookimpl
    def traits(self) -> Traits:
        return Traits(gives=frozenset({"cells", "pooled", "any_channels"}))

    @hookimpl
    def make_encoder(self) -> nn.Module:
        return TinyNet(*self.width) if len(self.width) > 1 else Through(*self.width)


@part
class Views:
    """Two whole images."""

    one_way: bool = False
    size: int = 16

    @hookimpl
    def sample_views(self, size: tuple[int, int]) -> Geometry:
        return whole(1, self.one_way, self.size)._replace(boxes=torch.tensor([[0.0, 0, 1, 1]] * 2), flips=torch.zeros(2, dtype=torch.bool), source=torch.tensor(size))


@hookimpl
def parts() -> dict[str, type]:
    return {"encoder": Encoder, "views": Views}


def whole(images: int, one_way: bool, size: int = 16) -> Geometry:
    box = torch.tensor([0.0, 0, 1, 1]).expand(images, 2, 4)
    pairs = ((0, 1),) if one_way else ((0, 1), (1, 0))
    return Geometry(box, torch.zeros(images, 2, dtype=torch.bool), torch.full((images, 2), float(size)), ((size, size),) * 2, pairs)


class Driven:
    """A model and its optimizer; `step` gives what a micro-batch offers, with images as the encoder sees them."""

    def __init__(self, loss: dict[str, Any], *, width: Sequence[int] = (8, 16), one_way: bool = False, images: int = 1000, batch: int = 8, **tables: Any) -> None:
        table: dict[str, Any] = {
            "views": {"use": "reference.views", "one_way": one_way},
            "encoder": {"use": "reference.encoder", "width": list(width)},
            "loss": [loss],
            "data": {"shards": "none.tar", "workers": 0},
            "optimizer": {"use": "sgd", "lr": 0.1},
            "run": {"steps": 1, "batch_size": batch},
            **tables,
        }
        self.assembly, self.one_way = assemble(from_table(table)), one_way
        encoder = self.assembly.encoder()
        self.model = Siamese(self.assembly, self.assembly.dims(encoder, images), encoder).double().train()
        self.optimizer, self.moved = make_optimizer(self.assembly, self.model.online)

    def load(self, state: Tensors, names: Mapping[str, str]) -> None:
        """The tensors whose names start with one of `names`, under the names that stand for it; every tensor of the model is given."""
        found = renamed(state, names)
        own = self.model.state_dict()
        missing = [k for k in own if k not in found and "num_batches_tracked" not in k]
        assert not missing and not found.keys() - own.keys(), (missing, found.keys() - own.keys())
        self.model.load_state_dict({k: v.reshape(own[k].shape) for k, v in found.items()}, strict=False)

    def step(self, *views: Tensor) -> LazyStep:
        n = len(views[0])
        batch = Batch(tuple(map(str, range(n))), torch.arange(n), torch.arange(n), 0, tuple(views), whole(n, self.one_way), (None,) * len(views), places=torch.arange(n))
        step = LazyStep(self.model, batch, Progress(0, 1, 0, 0.0), False)
        for view, images in enumerate(views):
            step._pixels.put(view, images)
        return step

    def loss(self, step: LazyStep) -> Tensor:
        (answer,) = self.assembly.calls.loss(step=step)
        (value,) = answer.values()
        return value

    def after(self, step: LazyStep) -> None:
        """What parts do with the step of one micro-batch, afterwards."""
        for call in (self.assembly.calls.after_micro_batch, self.assembly.calls.after_step):
            call(branches=self.model.branches, step=step.settle(), progress=step.progress)

    def grads(self) -> dict[str, Tensor]:
        return {f"online.{name}": p.grad for name, p in self.moved.items() if p.grad is not None}


def renamed(state: Tensors, names: Mapping[str, str]) -> dict[str, Tensor]:
    """By prefix; the longest that fits.  What no prefix fits, or one that stands for "", is left out."""
    found = {}
    for name, value in state.items():
        prefix = max((p for p in names if name.startswith(p)), key=len, default="")
        if prefix and names[prefix]:
            found[names[prefix] + name.removeprefix(prefix)] = value
    return found


def agree(what: str, found: Tensors, expected: Tensors, tolerance: float) -> None:
    """Every tensor of `expected` is found, to `tolerance`; `pytest -rP` shows by how much they differ."""
    apart = gap(found, expected)
    print(f"{what}: {apart:.1e}")
    assert apart <= tolerance, (what, {k: gap(found, {k: v}) for k, v in expected.items()})


def gap(found: Tensors, expected: Tensors) -> float:
    """The largest difference, over all tensors of `expected`."""
    assert expected
    return max(float((found[name].detach().double() - value.double().reshape(found[name].shape)).abs().max()) for name, value in expected.items())
