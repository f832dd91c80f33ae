"""SiameseIM's decoder with others' losses, its loss with others' alignments, on transformers and on ResNets: gradients arrive, the loss falls."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twinview.api import check
from twinview.assembly import assemble
from twinview.data.loading.item import Item
from twinview.data.loading.stacking import collate
from twinview.errors import PluginError, RecipeError
from twinview.model import LazyStep, Siamese
from twinview.recipe import read
from twinview.values import Batch, Progress
from twinview_siameseim.network import Decoder

START = Progress(0, 10, 0, 0.0)
VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 32, "depth": 2, "heads": 2, "positions": "sine_row", "final_norm": False}
RESNET = {"use": "timm.encoder", "name": "resnet10t"}  # 2 x 2 cells
DENSE = {"use": "siameseim.dense", "channels": 32, "projector_depth": 1, "attention_heads": 4, "negative_weight": 0.4}
CLUSTERS = {"use": "multisiam.clusters", "hidden": 32, "channels": 22}
REGION = {"use": "densesiam.region", "hidden": 32, "regions": 5}
RELATIVE = {"use": "siameseim.relative", "depth": 1, "attention_heads": 4}
RECIPE: dict[str, Any] = {
    "views": {"use": "siameseim.crops", "size": 64},
    "masks": {"use": "siameseim.blocks"},
    "encoder": VIT,
    "align": RELATIVE,
    "loss": [DENSE],
    "target": {"momentum": 0.9, "update": "before_forward"},
    "data": {"shards": "none"},
    "optimizer": {"use": "adamw", "lr": 1e-3},
    "run": {"steps": 10, "batch_size": 4},
}


def model_of(**tables: Any) -> Siamese:
    recipe = {k: v for k, v in {**RECIPE, **tables}.items() if v is not None}
    assembly = assemble(read(recipe))
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 100), encoder).train()


def batch_of(model: Siamese, n: int = 4) -> Batch:
    """As the recipe's views and masks draw it, of smooth random pictures."""
    rng, calls, items = np.random.default_rng(0), model.assembly.calls, []
    g = torch.Generator().manual_seed(0)
    for i in range(n):
        geometry = calls.sample_views(size=(80, 100), rng=rng)
        coarse = torch.rand(2, 3, 5, 5, generator=g)
        images = (torch.nn.functional.interpolate(coarse, 64, mode="bilinear") * 255).to(torch.uint8)
        masked = model.assembly.has("make_masks")
        hidden = calls.make_masks(geometry=geometry, grids=model.dims.grids, rng=rng) if masked else None
        geometry = geometry._replace(source=torch.tensor([80, 100]))
        items.append(Item(str(i), i, i * 7 + 1, 0, tuple(images), geometry, hidden or (None, None), None, {}))
    return collate(items)


def step_of(model: Siamese, batch: Batch) -> LazyStep:
    return LazyStep(model, batch, START, False)


@pytest.mark.parametrize("encoder", [VIT, {**VIT, "hide": "mask_token"}, RESNET], ids=["vit", "vit-mask-token", "resnet"])
@pytest.mark.parametrize(("align", "losses"), [
    (RELATIVE, [DENSE]),
    (RELATIVE, [DENSE, CLUSTERS]),
    (RELATIVE, [REGION]),
    ({"use": "multisiam.roi"}, [DENSE]),
    ({"use": "densesiam.grid_sample"}, [DENSE]),
], ids=["dense", "dense+clusters", "region", "roi", "grid_sample"])
def test_it_trains(encoder: dict[str, Any], align: dict[str, Any], losses: list[dict[str, Any]]) -> None:
    model = model_of(encoder=encoder, align=align, loss=losses)
    batch = batch_of(model)
    optimizer = torch.optim.AdamW([p for p in model.online.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for step in range(8):
        model.follow(0.9)
        found = model(batch, START, watch=step == 0)
        if step == 0:
            assert all(v.isfinite() for v in found.notes.values())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        values.append(float(found.loss.detach()))
    assert values[-1] < values[0]
    for name, p in model.online.named_parameters():  # only now: a ResNet's branches start at zero
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def decoder_width(model: Siamese, key: str) -> int:
    found = model.online.heads[key]
    assert isinstance(found, Decoder)
    return found.mask_token.shape[-1]


def test_each_width_has_a_decoder_of_its_own() -> None:
    model = model_of(loss=[DENSE, {**DENSE, "name": "again"}, CLUSTERS])
    assert {k for k in model.online.heads if "decoder" in k} == {"siameseim/relative/decoder32", "siameseim/relative/decoder22"}
    assert decoder_width(model, "siameseim/relative/decoder22") == 24  # what four heads and sines divide
    assert model.target is not None and not [k for k in model.target.heads if "decoder" in k]


def test_two_alignments_share_nothing() -> None:
    align = {"one": RELATIVE, "other": {**RELATIVE, "width": 48}}
    model = model_of(align=align, loss=[{**DENSE, "align": "one"}, {**DENSE, "align": "other", "name": "again", "channels": 16}])
    decoders = {k: decoder_width(model, k) for k in model.online.heads if "decoder" in k}
    assert decoders == {"siameseim/relative/one/decoder32": 32, "siameseim/relative/other/decoder16": 48}
    model(batch_of(model), START).loss.backward()


def maps(model: Siamese, seed: int = 0, side: int = 4) -> Tensor:
    return torch.randn(4, 32, side, side, generator=torch.Generator().manual_seed(seed))


def test_what_is_hidden_is_not_looked_at() -> None:
    model = model_of(encoder={**RESNET, "cells": "c4"})
    batch = batch_of(model)
    found = step_of(model, batch).alignment(0, 1)
    hidden = batch.hidden[0]
    assert hidden is not None and found.fills_hidden and found.takes_tokens and bool((found.weight == 1).all())
    x = maps(model)
    noisy = torch.where(hidden.view(4, 1, 4, 4), 99.0, x)
    assert torch.equal(found.online(x), found.online(noisy)) and found.online(x).shape == (4, 32, 4, 4)
    visible = torch.where(hidden.view(4, 1, 4, 4), x, x + 1)
    assert not torch.equal(found.online(x), found.online(visible))


def test_maps_of_another_resolution_are_brought_to_the_cells() -> None:
    model = model_of()
    found = step_of(model, batch_of(model)).alignment(0, 1)
    x = maps(model)
    torch.testing.assert_close(found.online(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), found.online(x))
    torch.testing.assert_close(found.target(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), x)
    assert torch.equal(found.target(x), x)


def test_the_class_token_is_told_and_never_predicted() -> None:
    model = model_of()
    step = step_of(model, batch_of(model))
    found, seen = step.alignment(0, 1), step.online[0]
    assert seen.tokens is not None and seen.prefix == 1 and seen.tokens.shape[1] == 1 + 16 - 10
    tokens = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 0] += 1
    assert not torch.equal(found.online(tokens), found.online(changed))
    whole = torch.randn(4, 17, 32)
    assert torch.equal(found.target(whole).flatten(2).mT, whole[:, 1:])


def test_a_target_that_was_masked_counts_where_it_saw() -> None:
    """Without an average the target is the online view, masked as it is."""
    both = {"views": {"use": "multisiam.iou_crops", "size": 64}, "masks": {"use": "siameseim.blocks", "views": [0, 1]}}
    model = model_of(**both, target={"momentum": 0.0})
    batch = batch_of(model)
    hidden = batch.hidden[1]
    assert hidden is not None
    step = step_of(model, batch)
    assert torch.equal(step.alignment(0, 1).weight, (~hidden).float().view(4, 4, 4))
    assert model(batch, START).loss.isfinite()
    averaged = model_of(**both)
    assert bool((step_of(averaged, batch).alignment(0, 1).weight == 1).all())  # the average sees all of it


def test_a_width_that_was_not_declared_is_named() -> None:
    model = model_of()
    found = step_of(model, batch_of(model)).alignment(0, 1)
    with pytest.raises(PluginError, match=r"\[align\] siameseim.relative: a loss sends 5 channels. Its aligned_widths\(\) must name them."):
        found.online(torch.zeros(4, 5, 4, 4))


def test_masks_that_the_views_have_no_room_for_are_refused() -> None:
    with pytest.raises(RecipeError, match="hides 16 of the 4 x 4 cells of view 0"):
        check({**RECIPE, "masks": {"use": "siameseim.blocks", "count": 16}})


def test_bf16_is_near_float32() -> None:
    model = model_of()
    batch = batch_of(model)
    plain = float(model(batch, START).loss.detach())
    low = model_of(run={**RECIPE["run"], "precision": "bf16"})
    low.load_state_dict(model_of().state_dict())
    found = low(batch, START)
    assert found.loss.dtype == torch.float32 and float(found.loss.detach()) == pytest.approx(plain, rel=0.02)
