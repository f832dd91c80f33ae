"""SimSiam's loss between whole images."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from twinview.assembly import assemble
from twinview.engine.optimizer import make_optimizer
from twinview.model import Siamese
from twinview.ops.spread import spread_of
from twinview.recipe import from_table
from twinview.values import Batch, Geometry, Progress


def model(toy: dict[str, Any], **options: Any) -> Siamese:
    assembly = assemble(from_table({**toy, "loss": [{"use": "simsiam.image", "channels": 12, "predictor_hidden": 5, **options}], "target": {"momentum": 0}}))
    encoder = assembly.encoder()
    return Siamese(assembly, assembly.dims(encoder, 10), encoder).train()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(2))
    geometry = Geometry(torch.tensor([[0.0, 0, 1, 1]] * 2).expand(6, 2, 4), torch.zeros(6, 2, dtype=torch.bool), torch.full((6, 2), 32.0), ((32, 32),) * 2, ((0, 1), (1, 0)))
    return Batch(tuple("abcdef"), torch.arange(6), torch.arange(6), 0, images, geometry, (None, None))


@pytest.mark.parametrize("similarity", ["cosine", "cross_entropy"])
def test_the_loss_is_the_papers(toy: dict[str, Any], similarity: str) -> None:
    siamese, given = model(toy, similarity=similarity), batch()
    copy = model(toy, similarity=similarity)
    outcome = siamese(given, Progress(0, 10, 0, 0.0))
    projector, predictor = (copy.online.heads[f"simsiam/image/{n}"] for n in ("projector", "predictor"))
    z = [projector(copy.online.encoder((x.float() - copy.mean) / copy.std).pooled) for x in given.images]
    p = [predictor(x) for x in z]
    terms = []
    for a, b in ((0, 1), (1, 0)):
        goal = z[b].detach()
        terms.append(-(F.normalize(p[a]) * F.normalize(goal)).sum(1).mean() if similarity == "cosine" else F.cross_entropy(p[a], goal.softmax(1)))
    assert float(outcome.terms["image"]) == pytest.approx(float(sum(terms)) / 2, rel=1e-5)


def test_the_projection_ends_in_a_norm_and_the_predictor_narrows(toy: dict[str, Any]) -> None:
    heads = model(toy).online.heads
    assert [type(m).__name__ for m in heads["simsiam/image/projector"].children()] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert [tuple(p.shape) for p in heads["simsiam/image/predictor"].parameters()] == [(5, 12), (5,), (5,), (12, 5), (12,)]


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_rate_stays_where_it_is_asked_to(toy: dict[str, Any], constant: bool) -> None:
    siamese = model(toy, constant_predictor_lr=constant)
    optimizer, moved = make_optimizer(siamese.assembly, siamese.online)
    names = {id(p): n for n, p in moved.items()}
    kept = {names[id(p)] for group in optimizer.param_groups if group["schedule"] == "constant" for p in group["params"]}
    assert kept == {n for n in moved if n.startswith("heads.simsiam/image/predictor.")} if constant else not kept


def test_a_short_run_learns_and_does_not_collapse(toy: dict[str, Any]) -> None:
    siamese, given = model(toy), batch()
    optimizer = torch.optim.SGD(siamese.online.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(30):
        outcome = siamese(given, Progress(0, 10, 0, 0.0), watch=True)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(float(outcome.loss.detach()))
    assert losses[-1] < losses[0] - 0.3 and float(spread_of(outcome.sums["online"])) > 0.2
