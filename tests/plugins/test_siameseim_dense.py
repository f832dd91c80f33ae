"""The dense loss by itself: its gradient, its scale, its weights, its cost."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.engine.setup import build
from twinview.ops.weights import load_weights
from twinview.recipe import read
from twinview_siameseim.dense import Dense, correlation, dense_loss
from twinview_siameseim.official import our_name
from twinview_timm.vit import BESIDE

LAMBDA = 0.02


def maps(seed: int, batch: int = 4, channels: int = 24, side: int = 5) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ones(x: Tensor) -> Tensor:
    return torch.ones(len(x), *x.shape[2:])


def rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, 2)


def test_the_gradient_is_the_published_one() -> None:
    q, t = maps(0).requires_grad_(), maps(1) * 3 + 1
    dense_loss(q, t, ones(q), LAMBDA).loss.backward()  # type: ignore[no-untyped-call]
    goals = F.layer_norm(rows(t), (24,))
    shared = goals.mT @ goals / len(goals)
    expected = 2 / (len(goals) * 24) * (rows(q) - goals + LAMBDA * rows(q) @ shared)
    assert q.grad is not None
    torch.testing.assert_close(rows(q.grad), expected.detach())


def test_no_gradient_reaches_the_target() -> None:
    q, t = maps(0).requires_grad_(), maps(1).requires_grad_()
    dense_loss(q, t, ones(q), LAMBDA).loss.backward()  # type: ignore[no-untyped-call]
    assert t.grad is None


def test_the_negative_term_is_every_predictions_square_with_every_target() -> None:
    q, t = maps(0), maps(1)
    found = dense_loss(q, t, ones(q), LAMBDA)
    goals = F.layer_norm(rows(t), (24,))
    products = rows(q) @ goals.mT  # cells x cells
    assert float(found.neg) == pytest.approx(LAMBDA * float(products.square().mean()) / 24)
    assert float(found.loss) == pytest.approx(float(found.pos + found.neg))


@pytest.mark.parametrize(("channels", "weight"), [(768, 0.02), (384, 0.02), (384, 0.04)])
def test_the_best_of_a_collapsed_target_is_where_it_is_said_to_be(channels: int, weight: float) -> None:
    one = torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = one.expand(3, -1, 2, 2)
    goals = F.layer_norm(rows(t), (channels,))
    shared = goals.mT @ goals / len(goals)
    best = torch.linalg.solve(torch.eye(channels, dtype=torch.float64) + weight * shared, goals.mT).mT
    found = dense_loss(best.view(3, 2, 2, channels).movedim(-1, 1), t, ones(t), weight)
    assert float(found.loss) == pytest.approx(weight * channels / (1 + weight * channels), rel=1e-4)
    assert float(found.directions) == pytest.approx(1)
    assert float(dense_loss(torch.zeros_like(t), t, ones(t), weight).loss) == pytest.approx(1, rel=1e-4)


def test_directions_of_independent_targets_are_as_many_as_channels() -> None:
    t = maps(1, batch=400, channels=16)
    assert float(dense_loss(t, t, ones(t), LAMBDA).directions) == pytest.approx(15, rel=0.02)  # layer normalization takes one away


def test_cells_without_weight_count_for_nothing() -> None:
    q, t = maps(0), maps(1)
    weight = ones(q)
    weight[:2] = 0
    weight[2:, 0] = 0.5
    found = dense_loss(q, t, weight, LAMBDA)
    noisy = dense_loss(torch.cat([q[:2] + 9, q[2:]]), torch.cat([t[:2] * 7 - 1, t[2:]]), weight, LAMBDA)
    assert float(found.loss) == pytest.approx(float(noisy.loss), rel=1e-9)
    whole = dense_loss(q[2:], t[2:], ones(q[2:]), LAMBDA)
    alone = dense_loss(q, t, torch.cat([torch.zeros(2, 5, 5), torch.full((2, 5, 5), 0.3)]), LAMBDA)
    assert float(alone.loss) == pytest.approx(float(whole.loss), rel=1e-6)
    q = maps(0).requires_grad_()
    nothing = dense_loss(q, t, torch.zeros(4, 5, 5), LAMBDA)
    nothing.loss.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.loss.detach()) == 0 and q.grad is not None and not q.grad.any()


def test_it_is_float32_under_autocast() -> None:
    q, t = maps(0).float(), maps(1).float()
    plain = dense_loss(q, t, ones(q), LAMBDA).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_loss(q, t, ones(q), LAMBDA).loss, plain)
        assert dense_loss(q.bfloat16(), t.bfloat16(), ones(q), LAMBDA).loss.dtype == torch.float32


def test_its_cost_goes_with_the_cells_and_not_with_their_square() -> None:
    q = torch.randn(100, 4, 32, 32)  # 102 400 cells: their square would be 42 GB
    began = time.process_time()
    dense_loss(q.requires_grad_(), q.detach(), ones(q), LAMBDA).loss.backward()  # type: ignore[no-untyped-call]
    assert time.process_time() - began < 5


def test_the_correlation_is_not_centered_and_has_the_width_as_its_trace() -> None:
    goals = F.layer_norm(rows(maps(1) + 3), (24,))
    shared = correlation(goals, torch.ones(len(goals)))
    torch.testing.assert_close(shared, goals.mT @ goals / len(goals))
    assert float(shared.trace()) == pytest.approx(24, rel=1e-4) and not shared.requires_grad


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="16 does not divide 100"):
        Dense(channels=100)


def small(photo_shards: str, **loss: Any) -> Any:
    return build(read({
        "views": {"use": "siameseim.crops", "size": 32},
        "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 48, "depth": 1, "heads": 3, "positions": "sine_row", "final_norm": False},
        "align": {"use": "siameseim.relative", "attention_heads": 4, "depth": 1, "norm": "layer"},
        "loss": [{"use": "siameseim.dense", "channels": 32, "attention_heads": 4, "projector_depth": 1, "norm": "layer", **loss}],
        "data": {"shards": photo_shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": 2, "batch_size": 4, "device": "cpu"},
    }))


def test_layer_norms_have_the_eps_of_the_released_code(photo_shards: str) -> None:
    heads = small(photo_shards, online_ln=True).model.online.heads
    found = {name: m.eps for name, m in heads.named_modules() if isinstance(m, nn.LayerNorm)}
    inner = {name: eps for name, eps in found.items() if ".blocks." in name}
    assert len(inner) == 4 and set(inner.values()) == {1e-6}
    assert found == inner | {"siameseim/dense/norm": 1e-5}


def test_online_ln_normalizes_predictions_and_never_moves(photo_shards: str) -> None:
    made = small(photo_shards, online_ln=True)
    model = made.model
    assert [name for name, _ in model.named_parameters() if "dense/norm" in name] == [f"online.heads.siameseim/dense/norm.{w}" for w in ("weight", "bias")]
    assert not any(p.requires_grad for name, p in model.named_parameters() if "dense/norm" in name), "frozen by its rule"
    q = maps(0, channels=32).float()
    part = next(p for p in made.assembly.parts.values() if isinstance(p, Dense))

    class Given:
        branches = model.branches

    found = part._normalized(cast(Any, Given()), q)
    torch.testing.assert_close(rows(found), F.layer_norm(rows(q), (32,), eps=1e-5))
    assert Dense()._normalized(cast(Any, Given()), q) is q, "off by default"


def test_a_checkpoint_with_online_ln_finds_its_place(photo_shards: str, tmp_path: Path) -> None:
    assert our_name("student_norm.bias", "siameseim/dense/projector", "d") == "online.heads.siameseim/dense/norm.bias"
    made = small(photo_shards, online_ln=True)
    assert "online.heads.siameseim/dense/norm.bias" in made.model.state_dict()
    encoder = {k: v for k, v in made.model.online.encoder.state_dict().items()}
    torch.save({"model": encoder | {"student_norm.weight": torch.ones(32), "student_norm.bias": torch.zeros(32)}}, tmp_path / "sim.pth")
    load_weights(made.model.online.encoder, str(tmp_path / "sim.pth"), ignore=BESIDE)
