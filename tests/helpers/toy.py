"""The toy method, as a package on the path would have it: a part for every slot, small enough for tests of composition."""
TOY = '''
import torch
from torch import nn
from twinview.hooks import hookimpl, part
from twinview.values import Alignment, EncoderSpec, Features, Geometry, Head, Level, Traits


class Net(nn.Module):
    """Cells are 8 x 8 pixel patches, one linear layer."""

    def __init__(self, width):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.spec = EncoderSpec(pooled=width, cells=Level(width, 8), levels={"c1": Level(width, 8)})

    def forward(self, images, hidden=None):
        cells = self.patch(images)
        if hidden is not None:
            cells = cells * ~hidden.view(-1, 1, *cells.shape[-2:])
        return Features(cells=cells, pooled=cells.mean((2, 3)), levels={"c1": cells})


@part
class Views:
    size: int = 32

    @hookimpl
    def sample_views(self, size, rng):
        box = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]])
        flips = torch.from_numpy(rng.random(2) < 0.5)
        return Geometry(box, flips, torch.tensor(size), ((self.size,) * 2,) * 2, ((0, 1), (1, 0)))


@part
class Masks:
    @hookimpl
    def make_masks(self, geometry, grids, rng):
        hidden = torch.zeros(grids[0][0] * grids[0][1], dtype=torch.bool)
        hidden[:3] = True
        return (hidden, None)


@part
class Encoder:
    width: int = 8
    gives: list[str] = ["cells", "pooled", "levels", "hides"]

    @hookimpl
    def traits(self):
        return Traits(gives=frozenset(self.gives))

    @hookimpl
    def make_encoder(self):
        return Net(self.width)


@part
class Align:
    extra: int = 0
    fills_hidden: bool = False

    @hookimpl
    def traits(self):
        return Traits(extra=self.extra)

    @hookimpl
    def align(self, step, online, target):
        return Alignment(lambda m: m, lambda m: m, torch.ones(len(step.batch.keys), 4, 4), fills_hidden=self.fills_hidden)


@part
class Pooled:
    channels: int = 4
    needs: list[str] = ["pooled"]
    term: str = "pooled"

    @hookimpl
    def traits(self):
        return Traits(needs=frozenset(self.needs))

    @hookimpl
    def heads(self, dims):
        return {"projector": Head(nn.Linear(dims.encoder.pooled, self.channels)), "predictor": Head(nn.Linear(self.channels, self.channels), "online_only")}

    @hookimpl
    def loss(self, step):
        project, predict = step.head(self, "projector"), step.head(self, "predictor")
        terms = [
            (step.apply([project, predict], i, "online", "pooled") - step.apply(project, j, "target", "pooled")).square().mean() for i, j in step.pairs
        ]
        return {self.term: sum(terms) / len(terms)}


@part
class Cells:
    align: str = ""

    @hookimpl
    def traits(self):
        return Traits(needs=frozenset({"cells", "alignment"}))

    @hookimpl
    def aligned_widths(self, dims):
        return (dims.width("cells"),)

    @hookimpl
    def loss(self, step):
        found = step.alignment(0, 1, self.align)
        gap = (found.online(step.online[0].cells) - found.target(step.target[1].cells)).square().mean(1)
        return {"cells": (gap * found.weight).sum() / found.weight.sum()}


@hookimpl
def parts():
    return {"views": Views, "masks": Masks, "encoder": Encoder, "align": Align, "pooled": Pooled, "cells": Cells}
'''
