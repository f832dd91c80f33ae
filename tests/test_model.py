"""The step computes what it is asked for, once; the target follows and gives no gradient."""
from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from twinview.assembly import assemble
from twinview.errors import ContractError, PluginError
from twinview.model import LazyStep, Siamese
from twinview.ops.seeding import seed_of, uniform
from twinview.recipe import read
from twinview.values import Batch, Geometry, Progress

PROGRESS = Progress(0, 10, 0, 0.0)


def model_of(table: dict[str, Any]) -> Siamese:
    assembly = assemble(read(table))
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 100), encoder)


def batch_of(n: int = 4, hidden: bool = False, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = tuple(torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8) for _ in range(2))
    box = torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75]]).expand(n, 2, 4)
    geometry = Geometry(box, torch.zeros(n, 2, dtype=torch.bool), torch.full((n, 2), 64), ((32, 32), (32, 32)), ((0, 1), (1, 0)), {"tries": torch.arange(float(n))})
    mask = torch.zeros(n, 16, dtype=torch.bool)
    mask[:, :3] = True
    return Batch(tuple(map(str, range(n))), torch.arange(n), torch.arange(n) * 7 + 1, 0, images, geometry, (mask if hidden else None, None))


def test_a_step_has_loss_terms_and_gradients(toy: dict[str, Any]) -> None:
    model = model_of({**toy, "align": {"use": "toy.align"}, "loss": [{"use": "toy.pooled", "weight": 0.5}, {"use": "toy.cells", "weight": 2.0}]})
    out = model(batch_of(), PROGRESS, watch=True)
    assert set(out.terms) == {"pooled", "cells"}
    assert torch.allclose(out.loss, 0.5 * out.terms["pooled"] + 2 * out.terms["cells"])
    assert float(out.notes["views/tries"]) == 1.5 and abs(float(out.notes["views/crop_area"]) - 0.25) < 1e-6
    assert out.sums.keys() == {"online", "target"} and not any("erank" in name for name in out.notes)  # of so few images it says nothing
    out.loss.backward()
    assert model.target is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.online.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert set(model.online.heads) == {"toy/pooled/projector", "toy/pooled/predictor"} and set(model.target.heads) == {"toy/pooled/projector"}


def test_a_weight_moves_with_the_run(toy: dict[str, Any]) -> None:
    model = model_of({**toy, "align": {"use": "toy.align"}, "loss": [{"use": "toy.pooled"}, {"use": "toy.cells", "weight": [[0.0, 0.0], [0.5, 2.0]]}]})
    for share, weight in ((0.0, 0.0), (0.25, 1.0), (0.75, 2.0)):
        out = model(batch_of(), PROGRESS._replace(share=share))
        assert torch.allclose(out.loss, out.terms["pooled"] + weight * out.terms["cells"])


def test_nothing_is_computed_twice_or_unasked(toy: dict[str, Any]) -> None:
    model = model_of(toy)
    ran: list[str] = []
    model.online.encoder.register_forward_hook(lambda *_: ran.append("online"))
    model.target.encoder.register_forward_hook(lambda *_: ran.append("target"))  # type: ignore[union-attr]
    model.online.heads["toy/pooled/projector"].register_forward_hook(lambda *_: ran.append("projector"))
    step = LazyStep(model, batch_of(), PROGRESS, False)
    assert ran == []
    part = model.assembly.parts["toy.pooled"]
    project, predict = step.head(part, "projector"), step.head(part, "predictor")
    step.apply([project, predict], 0, "online", "pooled")
    step.apply(project, 0, "online", "pooled")
    step.apply([project, predict], 0, "online", "pooled")
    assert ran == ["online", "projector"]
    assert step.target[1] is step.target[1] and ran == ["online", "projector", "target"]


def test_without_momentum_the_target_is_the_online_result_detached(toy: dict[str, Any]) -> None:
    model = model_of({**toy, "target": {"momentum": 0}})
    assert model.target is None and model.branches.target is model.online
    ran: list[int] = []
    model.online.encoder.register_forward_hook(lambda *_: ran.append(1))
    step = LazyStep(model, batch_of(), PROGRESS, False)
    project = step.head(model.assembly.parts["toy.pooled"], "projector")
    target, online = step.apply(project, 1, "target", "pooled"), step.apply(project, 1, "online", "pooled")
    assert torch.equal(target, online) and online.requires_grad and not target.requires_grad
    assert step.target[1].pooled is not None and not step.target[1].pooled.requires_grad and ran == [1]


LEARNED = '''
import torch
from torch import nn
from twinview.hooks import hookimpl, part
from twinview.values import Alignment, Head


@part
class Align:
    @hookimpl
    def heads(self, dims):
        return {f"decoder{width}": Head(nn.Conv2d(width, width, 1), "online_only") for width in dims.sent}

    @hookimpl
    def align(self, step, online, target):
        decode = step.branches.online.of(self, "decoder8")
        return Alignment(decode, lambda m: m, torch.ones(len(step.batch.keys), 4, 4))


@part
class Cells:
    align: str = ""

    @hookimpl
    def aligned_widths(self, dims):
        return (8, 3)

    @hookimpl
    def loss(self, step):
        return {"cells": step.alignment(0, 1, self.align).online(step.online[0].cells).mean()}


@hookimpl
def parts():
    return {"align": Align, "cells": Cells}
'''


def test_a_learned_alignment_is_built_for_the_widths_that_are_sent_through_it(toy: dict[str, Any], install: Callable[..., None]) -> None:
    install("learned", LEARNED)
    losses = [{"use": "learned.cells", "align": "a", "name": "one"}, {"use": "toy.cells", "align": "b", "name": "two"}]
    model = model_of({**toy, "align": {"a": {"use": "learned.align"}, "b": {"use": "learned.align"}}, "loss": losses})
    assert set(model.online.heads) == {"learned/align/a/decoder8", "learned/align/a/decoder3", "learned/align/b/decoder8"}
    assert set(model.dims.aligned_widths) == {"a", "b"} and model.dims.sent == ()
    assert not model.target.heads and model(batch_of(), PROGRESS).loss.requires_grad  # type: ignore[union-attr]


def test_the_target_follows(toy: dict[str, Any]) -> None:
    model = model_of(toy)
    assert model.target is not None
    before = {k: v.clone() for k, v in model.target.named_parameters()}
    with torch.no_grad():
        for p in model.online.parameters():
            p.add_(1.0)
    model.follow(0.9)
    assert all(torch.allclose(v, before[k] + 0.1, atol=1e-6) for k, v in model.target.named_parameters())


def test_hidden_cells_are_hidden_online_alone_and_weigh_nothing(toy: dict[str, Any]) -> None:
    model = model_of({**toy, "masks": {"use": "toy.masks"}, "align": {"use": "toy.align"}, "loss": [{"use": "toy.cells"}]})
    step = LazyStep(model, batch_of(hidden=True), PROGRESS, False)
    online, target = step.online[0].cells, step.target[0].cells
    assert online is not None and target is not None
    assert float(online.detach().flatten(2)[..., :3].abs().sum()) == 0 and float(target.flatten(2)[..., :3].abs().sum()) > 0
    weight = step.alignment(0, 1).weight
    assert weight.flatten(1)[0].tolist() == [0, 0, 0] + [1] * 13
    assert float(step.alignment(1, 0).weight.min()) == 1


@pytest.mark.parametrize("fills", [False, True])
def test_without_an_average_the_target_is_masked_too_and_its_hidden_cells_weigh_nothing(toy: dict[str, Any], fills: bool) -> None:
    tables = {"masks": {"use": "toy.masks"}, "align": {"use": "toy.align", "fills_hidden": fills}, "loss": [{"use": "toy.cells"}], "target": {"momentum": 0}}
    step, seen = LazyStep(model_of({**toy, **tables}), batch_of(hidden=True), PROGRESS, False), [0] * 3 + [1] * 13
    assert step.alignment(1, 0).weight.flatten(1)[0].tolist() == seen
    assert step.alignment(0, 1).weight.flatten(1)[0].tolist() == ([1] * 16 if fills else seen)


def test_a_single_view_is_watched_too(toy: dict[str, Any]) -> None:
    batch = batch_of()
    step = LazyStep(model_of(toy), batch._replace(images=batch.images[:1], geometry=batch.geometry._replace(pairs=())), PROGRESS, True)
    assert step.online[0].cells is not None
    step.watch_features()
    assert "views/iou" not in step.notes and step.sums.keys() == {"online"}


def test_a_step_and_its_activations_go_when_nothing_holds_them(toy: dict[str, Any]) -> None:
    gc.collect()
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        out = model_of({**toy, "align": {"use": "toy.align"}, "loss": [{"use": "toy.cells"}]})(batch_of(), PROGRESS)
        step = weakref.ref(out.step.settle())
        del out
        assert step() is None
    finally:
        gc.enable()


def test_settle_drops_every_gradient(toy: dict[str, Any]) -> None:
    out = model_of(toy)(batch_of(), PROGRESS)
    step = out.step.settle()
    assert not step.online[0].pooled.requires_grad
    assert not step.apply("toy/pooled/projector", 0, "online", "pooled").requires_grad


def test_terms_of_one_name_are_told_apart(toy: dict[str, Any]) -> None:
    twice = {**toy, "loss": [{"use": "toy.pooled"}, {"use": "toy.pooled", "name": "b"}]}
    assert set(model_of(twice)(batch_of(), PROGRESS).terms) == {"pooled", "b.pooled"}
    clash = {**toy, "align": {"use": "toy.align"}, "loss": [{"use": "toy.pooled", "term": "cells"}, {"use": "toy.cells"}]}
    out = model_of(clash)(batch_of(), PROGRESS)
    assert list(out.terms) == ["cells", "toy.cells.cells"] and torch.equal(out.loss.detach(), out.terms["cells"] + out.terms["toy.cells.cells"])


def test_a_loss_that_gives_a_term_twice_is_named(toy: dict[str, Any], install: Callable[..., None]) -> None:
    code = 'from twinview import hookimpl, part\n@part\nclass Again:\n    """Gives every term twice."""\n    @hookimpl(wrapper=True)\n    def loss(self, step):\n'
    install("again", code + '        answers = yield\n        return [*answers, *answers]\n@hookimpl\ndef parts(): return {"again": Again}\n')
    with pytest.raises(PluginError, match=r"\[\[loss\]\] toy.pooled: gives a term 'pooled' twice"):
        model_of({**toy, "extra": [{"use": "again.again"}]})(batch_of(), PROGRESS)


def test_precision(toy: dict[str, Any]) -> None:
    model = model_of({**toy, "run": {**toy["run"], "precision": "bf16"}})
    out = model(batch_of(), PROGRESS)
    assert out.loss.dtype == torch.float32 and torch.isfinite(out.loss)
    assert out.step.online[0].cells.dtype == torch.bfloat16 and model.online.encoder.patch.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_a_head_starts_alike_whatever_stands_beside_it(toy: dict[str, Any]) -> None:
    alone = model_of(toy)
    beside = model_of({**toy, "loss": [{"use": "toy.pooled", "name": "first"}, {"use": "toy.pooled"}]})
    a, b = alone.online.heads["toy/pooled/projector"].state_dict(), beside.online.heads["toy/pooled/projector"].state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert alone.branches.initial().state_dict().keys() == alone.online.encoder.state_dict().keys()
    assert all(torch.equal(v, alone.online.encoder.state_dict()[k]) for k, v in alone.branches.initial().state_dict().items())


def test_a_missing_head_is_named(toy: dict[str, Any]) -> None:
    step = LazyStep(model_of(toy), batch_of(), PROGRESS, False)
    with pytest.raises(ContractError, match=r"a head 'nothing' that this branch does not have\. There is: toy/pooled/predictor, toy/pooled/projector"):
        step.apply("nothing", 0, "online")
    with pytest.raises(ContractError, match="asks for 'c9', and the encoder gives: cells, pooled, c1"):
        step.apply("toy/pooled/projector", 0, "online", "c9")


def test_draws_depend_on_sample_purpose_epoch_and_seed_alone(toy: dict[str, Any]) -> None:
    seeds = torch.tensor([5, 9, -3])
    whole = uniform(seeds, 4, 0, 1, "kmeans")
    assert torch.equal(whole[1:2], uniform(seeds[1:2], 4, 0, 1, "kmeans"))
    assert torch.equal(whole[:, :2], uniform(seeds, 2, 0, 1, "kmeans"))
    assert not torch.equal(whole, uniform(seeds, 4, 0, 2, "kmeans")) and not torch.equal(whole, uniform(seeds, 4, 0, 1, "other"))
    many = uniform(torch.arange(20000), 3, "x")
    assert float(many.min()) >= 0 and float(many.max()) < 1 and abs(float(many.mean()) - 0.5) < 0.01 and abs(float(many.std()) - 12**-0.5) < 0.01
    assert float(torch.corrcoef(many.T).fill_diagonal_(0).abs().max()) < 0.03
    assert seed_of("a", 1) != seed_of("a1") and seed_of("a", 1) != seed_of("a", "1")
    model = model_of(toy)
    step = LazyStep(model, batch_of(), PROGRESS, False)
    assert torch.equal(step.uniform("p", 2), LazyStep(model, batch_of(), PROGRESS, False).uniform("p", 2))


@pytest.mark.parametrize(("precision", "plain"), [("bf16", True), ("fp32", False)])
def test_attention_in_bf16_on_a_cpu_is_not_fused(toy: dict[str, Any], precision: str, plain: bool) -> None:
    seen: list[bool] = []
    fused: Any = torch.backends.cuda.flash_sdp_enabled
    siamese = model_of({**toy, "run": {**toy["run"], "precision": precision}})
    siamese.online.encoder.register_forward_hook(lambda *_: seen.append(not fused()))
    siamese(batch_of(), Progress(0, 1, 0, 0.0))
    assert set(seen) == {plain} and fused()
