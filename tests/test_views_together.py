"""Both views in one forward pass: the same features where images do not see each other, BatchNorm's over both where they do."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.assembly import assemble
from twinview.errors import RecipeError
from twinview.model import LazyStep, Siamese
from twinview.recipe import read
from twinview.values import Batch, Geometry, Progress

Table = dict[str, Any]
PROGRESS = Progress(0, 10, 0, 0.0)
PAIRS = ((0, 1), (1, 0))
METHOD = '''
import torch
from twinview.hooks import hookimpl, part
from twinview.values import Features, Geometry


@part
class Views:
    """Views of given sizes, every pair of one of the first with another, or given pairs."""

    sizes: list[int] = [32, 32, 16]
    pairs: list[list[int]] = [[0, 1], [1, 0], [0, 2]]

    @hookimpl
    def sample_views(self, size, rng):
        n = len(self.sizes)
        boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(n, 4)
        return Geometry(boxes, torch.zeros(n, dtype=torch.bool), torch.tensor(size), tuple((s, s) for s in self.sizes), tuple(map(tuple, self.pairs)))


@part
class Encodes:
    """Goes around passes of one view and of several; writes down which."""

    @hookimpl(wrapper=True)
    def encode(self, images, views, step):
        step.passes = [*getattr(step, "passes", []), (views, len(images))]
        return (yield)


@part
class One:
    @hookimpl
    def encode(self, branch, images, hidden, view):
        return branch.encoder(images, hidden)


@hookimpl
def parts():
    return {"views": Views, "encodes": Encodes, "one": One}
'''


def model_of(table: Table, together: bool) -> Siamese:
    assembly = assemble(read({**table, "run": {**table["run"], "views_together": together}}))
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 100), encoder).train()


def batch_of(sizes: tuple[int, ...] = (32, 32), pairs: tuple[tuple[int, int], ...] = PAIRS, hidden: tuple[int, ...] = (0, 0), n: int = 4) -> Batch:
    g, views = torch.Generator().manual_seed(0), len(sizes)
    images = tuple(torch.randint(0, 256, (n, 3, s, s), generator=g, dtype=torch.uint8) for s in sizes)
    box = torch.tensor([[0, 0, 0.5, 0.5]]).expand(n, views, 4)
    geometry = Geometry(box, torch.zeros(n, views, dtype=torch.bool), torch.full((n, 2), 64), tuple((s, s) for s in sizes), pairs)
    order = [torch.rand(n, 16, generator=g).argsort(1) for _ in sizes]
    masks = tuple(order[v] < count if count else None for v, count in enumerate(hidden))
    return Batch(tuple(map(str, range(n))), torch.arange(n), torch.arange(n) + 1, 0, images, geometry, masks)


def calls(module: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of the images of every pass from now on."""
    seen: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


def trained(model: Siamese, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(batch, PROGRESS)
    out.loss.backward()
    return out.loss.detach(), {name: p.grad for name, p in model.online.named_parameters() if p.grad is not None}


VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 24, "depth": 2, "heads": 2, "patch": 8, "img_size": 32}


@pytest.mark.parametrize("momentum", [0.99, 0.0])
@pytest.mark.parametrize("hidden", [(0, 0), (5, 5)], ids=["seen", "hidden"])
def test_without_batchnorm_nothing_changes(toy: Table, momentum: float, hidden: tuple[int, int]) -> None:
    table = {**toy, "encoder": VIT, "target": {"momentum": momentum}, "masks": {"use": "toy.masks"}}
    batch, models = batch_of(hidden=hidden), [model_of(table, together) for together in (False, True)]
    passes = [calls(model.online.encoder) for model in models]
    (loss, grads), (other, others) = (trained(model, batch) for model in models)
    assert passes[0] == [(4, 3, 32, 32)] * 2 and passes[1] == [(8, 3, 32, 32)]
    assert torch.allclose(loss, other, atol=1e-6) and grads.keys() == others.keys()
    assert all(torch.allclose(grads[name], others[name], atol=1e-6) for name in grads)


def test_batchnorm_sees_both_views(toy: Table) -> None:
    """What comes out is what one pass of all images gives; statistics are taken once, over all."""
    table = {**toy, "encoder": {"use": "torchvision.resnet", "name": "resnet18"}}
    batch, one = batch_of(), model_of(table, True)
    step = LazyStep(one, batch, PROGRESS, False)
    by_hand = model_of(table, False)
    found = by_hand.online.encoder(torch.cat([step.pixels[0], step.pixels[1]]))
    for view in (1, 0):
        for name in ("cells", "pooled", "c2"):
            assert torch.equal(step.online[view].at(name), found.at(name)[4 * view : 4 * view + 4]), name
    assert all(torch.equal(b, dict(by_hand.online.named_buffers())[name]) for name, b in one.online.named_buffers())
    assert one.target is not None and step.target[0].pooled is not None
    apart = LazyStep(by_hand, batch, PROGRESS, False)
    assert not torch.allclose(apart.online[0].at("pooled"), found.pooled[:4], atol=1e-2)


def test_what_goes_together_are_views_of_one_size_that_the_pairs_ask_of_a_branch(toy: Table, install: Callable[..., None]) -> None:
    install("many", METHOD)
    table = {**toy, "views": {"use": "many.views"}}
    model = model_of(table, True)
    assert model.together == {"online": {0: [0, 1], 1: [0, 1]}, "target": {1: [1, 0], 0: [1, 0], 2: [2]}}
    online, target = calls(model.online.encoder), calls(model.branches.target.encoder)
    step = LazyStep(model, batch_of((32, 32, 16), ((0, 1), (1, 0), (0, 2)), (0, 0, 0)), PROGRESS, False)
    assert step.target[1].pooled is not None and step.target[2].pooled is not None and step.target[0].pooled is not None
    assert target == [(8, 3, 32, 32), (4, 3, 16, 16)] and online == []
    assert not step.target[0].pooled.requires_grad and step.online[0].pooled is not None and online == [(8, 3, 32, 32)]
    stop_gradient = model_of({**table, "views": {"use": "many.views", "pairs": [[0, 1]]}, "target": {"momentum": 0}}, True)
    assert stop_gradient.together == {"online": {0: [0, 1], 1: [0, 1]}, "target": {}}


def test_views_that_hide_other_numbers_of_cells_go_alone(toy: Table) -> None:
    model = model_of({**toy, "encoder": VIT, "masks": {"use": "toy.masks"}}, True)
    online, target = calls(model.online.encoder), calls(model.branches.target.encoder)
    trained(model, batch_of(hidden=(5, 0)))
    assert online == [(4, 3, 32, 32)] * 2 and target == [(8, 3, 32, 32)]


def test_a_part_that_encodes_is_told_which_views_it_has(toy: Table, install: Callable[..., None]) -> None:
    install("many", METHOD)
    for together, passes in ((True, [((0, 1), 8)]), (False, [((0,), 4), ((1,), 4)])):
        step: Any = LazyStep(model_of({**toy, "extra": [{"use": "many.encodes"}]}, together), batch_of(), PROGRESS, False)
        assert step.online[0].pooled is not None and step.online[1].pooled is not None and step.passes == passes


def test_what_cannot_go_together_is_refused_with_the_reason(toy: Table, install: Callable[..., None]) -> None:
    install("many", METHOD)
    with pytest.raises(RecipeError, match=r"^\[run\] views_together: \[\[extra\]\] many\.one answers encode for one `view`, and does not take `views`\. Leave"):
        model_of({**toy, "extra": [{"use": "many.one"}]}, True)
    for views in ({"sizes": [32, 16], "pairs": [[0, 1], [1, 0]]}, {"sizes": [32, 32], "pairs": [[0, 1]]}):
        with pytest.raises(RecipeError, match=r"^\[run\] views_together: the pairs of many\.views ask no branch for two views of one size\. Leave it out"):
            model_of({**toy, "views": {"use": "many.views", **views}}, True)
