"""A whole training step of the segmentation model against its equations, worked out once more in float64, image by image."""
from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.api import check
from twinview.assembly import assemble
from twinview.errors import RecipeError
from twinview.model import Siamese
from twinview.recipe import find, from_table, read
from twinview.values import Batch, Geometry, Progress
from twinview_densesiam.region import region_sums

K, K_AUX, N, SIDE = 5, 7, 3, 32


def recipe(**changes: Any) -> dict[str, Any]:
    table = read(find("densesiam/quickstart"), ["views.size=[32,32]", "encoder.decoder=8", "head.0.clusters=5", "loss.0.auxiliary=7", "loss.0.predictor_hidden=6",
                                                "run.batch_size=3", "run.precision=fp32", "run.channels_last=false", "evaluate=[]"]).table()
    return table | changes


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    crops = torch.tensor([[0.1, 0.0, 0.7, 0.6], [0.3, 0.25, 1.0, 0.95], [0.0, 0.0, 1.0, 1.0]])
    boxes = torch.stack([crops, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(N, 4)], 1)
    geometry = Geometry(boxes, torch.tensor([[True, False], [False, False], [True, False]]), torch.full((N, 2), 64.0), ((SIDE, SIDE),) * 2, ((0, 1), (1, 0)), {})
    images = tuple((255 * F.interpolate(torch.rand(N, 3, 6, 6, generator=generator), (SIDE, SIDE), mode="bilinear")).byte() for _ in range(2))
    return Batch(("a", "b", "c"), torch.arange(N), torch.arange(N), 0, images, geometry, (None, None))


def model(table: dict[str, Any]) -> Siamese:
    assembly = assemble(from_table(table))
    encoder = assembly.encoder()
    found = Siamese(assembly, assembly.dims(encoder, 30), encoder).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.online.parameters():  # biases and gains off their starts
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


def by_the_equations(siamese: Siamese, given: Batch, *, region: bool, rebalance: bool = True) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, terms and gradients by name, of a float64 copy; loops over images and cells where an equation has a sum."""
    copy: Any = Siamese(siamese.assembly, siamese.dims).double().train()
    copy.online.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in siamese.online.state_dict().items()})
    heads, net = copy.online.heads, copy.online.encoder
    f = [net((given.images[v].double() - copy.mean) / copy.std).cells for v in (0, 1)]
    z, z_aux = [heads["clusters/projector"](x) for x in f], [heads["densesiam/pixel/auxiliary_projector"](x) for x in f]
    p, p_aux = [heads["densesiam/pixel/predictor"](x) for x in z], [heads["densesiam/pixel/auxiliary_predictor"](x) for x in z_aux]
    g = SIDE // 4

    @functools.cache
    def weights(view: int, image: int) -> Tensor:
        """[g*g cells, g*g points]: the bilinear formula at the middles of the crop's cells."""
        x0, y0, x1, y1 = given.geometry.boxes[image, 0].double()
        bx0, by0, bx1, by1 = given.geometry.boxes[image, view].double()
        found = torch.zeros(g, g, g * g, dtype=torch.float64)
        for point in range(g * g):
            x, y = x0 + (point % g + 0.5) / g * (x1 - x0), y0 + (point // g + 0.5) / g * (y1 - y0)
            u, v = (x - bx0) / (bx1 - bx0), (y - by0) / (by1 - by0)
            u = 1 - u if given.geometry.flips[image, view] else u
            cx, cy = (u * g - 0.5).clamp(0, g - 1), (v * g - 0.5).clamp(0, g - 1)
            i, j = min(int(cx), g - 2), min(int(cy), g - 2)
            a, b = cx - i, cy - j
            found[j, i, point], found[j, i + 1, point] = (1 - b) * (1 - a), (1 - b) * a
            found[j + 1, i, point], found[j + 1, i + 1, point] = b * (1 - a), b * a
        return found.flatten(0, 1)

    def sampled(maps: Tensor, view: int, image: int) -> Tensor:
        return maps[image].flatten(1) @ weights(view, image)  # [C, points]

    def pixel(p: list[Tensor], z: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for online, target in ((0, 1), (1, 0)):
            for image in range(N):
                a, b = sampled(p[online], online, image), sampled(z[target], target, image).detach()
                total = total - (b.softmax(0) * a.log_softmax(0)).sum() / (N * g * g) / 2
        return total

    w = math.log(K_AUX) / (math.log(K) + math.log(K_AUX))
    terms = {"pixel": w * pixel(p, z), "auxiliary": (1 - w) * pixel(p_aux, z_aux)}

    segment = torch.zeros((), dtype=torch.float64)
    for view in (0, 1):
        flat = z[view].movedim(1, -1).flatten(0, 2)
        labels = flat.argmax(1)
        counts = torch.bincount(labels, minlength=K)
        weight = counts[labels] / len(labels) if rebalance else 1.0
        segment = segment - (weight * flat.log_softmax(1)[torch.arange(len(labels)), labels]).mean() / 2
    terms["segment"] = segment

    projector, predictor = heads["densesiam/region/projector"], heads["densesiam/region/predictor"]
    sums = [torch.stack([sampled(z[v], v, i).softmax(0) @ sampled(f[v], v, i).T for i in range(N)]) for v in (0, 1)]
    q = [projector(s.flatten(0, 1)) for s in sums]
    s = [F.normalize(predictor(x), dim=1).view(N, K, -1) for x in q]
    q = [F.normalize(x, dim=1).view(N, K, -1) for x in q]
    contrast = torch.zeros((), dtype=torch.float64)
    for a, b in ((0, 1), (1, 0)):
        for image in range(N):
            contrast = contrast - (s[a][image] @ q[b][image].T / 0.1).log_softmax(1).diagonal().mean() / N / 2
    terms["region"] = contrast if region else contrast * 0

    total = terms["pixel"] + terms["auxiliary"] + terms["segment"] + 0.1 * terms["region"]
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach(), {k: v.detach() for k, v in terms.items()}, {k: v.grad for k, v in copy.online.named_parameters() if v.grad is not None}


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_step_follows_the_equations(share: float) -> None:
    siamese, given = model(recipe()), batch()
    total, terms, gradients = by_the_equations(siamese, given, region=share >= 0.5)
    siamese.double()  # in float32 the BatchNorms of so few cells would leave four digits; the weighted sum stays float32
    outcome = siamese(given, Progress(0, 10, 0, share), watch=True)
    outcome.loss.backward()
    assert list(outcome.terms) == ["pixel", "auxiliary", "segment", "region"]
    for name, value in terms.items():
        assert float(outcome.terms[name]) == pytest.approx(float(value), rel=1e-7, abs=1e-12), name
    assert float(outcome.loss.detach()) == pytest.approx(float(total), rel=1e-6)
    largest = max(float(g.abs().max()) for g in gradients.values())
    checked = 0
    for name, parameter in siamese.online.named_parameters():
        if name in gradients and parameter.grad is not None:
            assert float((parameter.grad - gradients[name]).abs().max()) < 1e-6 * largest, name
            checked += 1
    assert checked == len(gradients) > 70
    assert float(outcome.notes["region/raw"]) > 0 and 0 < float(outcome.notes["segment/entropy"]) <= 1


def test_one_projector_serves_all_and_runs_once_a_view() -> None:
    siamese, given = model(recipe()), batch()
    projector: nn.Module = siamese.online.heads["clusters/projector"]
    seen: list[int] = []
    projector.register_forward_hook(lambda *_: seen.append(1))
    siamese(given, Progress(0, 10, 0, 1.0))
    assert len(seen) == 2 and [k for k in siamese.online.heads if k.endswith("/projector")] == ["clusters/projector", "densesiam/region/projector"]


def test_the_published_sizes() -> None:
    table = read(find("densesiam/coco_stuff_r18"), ["encoder.weights=", "views.size=[32,32]", "evaluate=[]"]).table()
    siamese = model(table)
    count = {key: sum(p.numel() for p in head.parameters()) for key, head in siamese.online.heads.items()}
    bias = 27, 128  # a bias before a BatchNorm, which the released layers have and which does nothing
    assert count["clusters/projector"] == 36_763 - bias[0] and count["densesiam/pixel/predictor"] == 7_195
    assert count["densesiam/pixel/auxiliary_projector"] == 49_792 - bias[1] and count["densesiam/pixel/auxiliary_predictor"] == 33_152
    assert count["densesiam/region/projector"] == 49_664 and count["densesiam/region/predictor"] == 33_152
    encoder = siamese.online.encoder
    assert sum(p.numel() for n, p in encoder.named_parameters() if n.startswith("decoder.")) == 123_392
    assert sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("decoder.")) == 11_176_512


def region_gradients(stop: bool) -> dict[str, bool]:
    """Which inputs of the region loss have gradient where view 2's features are a leaf of their own."""
    changed = recipe(loss=[{"use": "densesiam.region", "head": "clusters", "stop_gradient": stop}])
    siamese, given = model(changed), batch()
    one_way = given._replace(geometry=given.geometry._replace(pairs=((0, 1),)))
    cells: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.cells.retain_grad() if output.cells.requires_grad else None
        cells.append(output.cells)

    siamese.online.encoder.register_forward_hook(keep)
    siamese(one_way, Progress(0, 10, 0, 1.0)).loss.backward()
    return {f"view {i + 1}": c.grad is not None and bool(c.grad.abs().sum() > 0) for i, c in enumerate(cells)}


def test_gradient_of_the_region_loss_reaches_both_views_unless_it_is_stopped() -> None:
    assert region_gradients(stop=False) == {"view 1": True, "view 2": True}
    assert region_gradients(stop=True) == {"view 1": True, "view 2": False}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_stopped_region_loss_trains_both_ways(momentum: float) -> None:
    changed = recipe(loss=[{"use": "densesiam.region", "head": "clusters", "stop_gradient": True}], target={"momentum": momentum})
    siamese, given = model(changed), batch()
    outcome = siamese(given, Progress(0, 10, 0, 1.0))
    outcome.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for n, p in siamese.online.named_parameters() if "encoder" in n and "bn" not in n)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("stop", "pairs", "both"), [(False, ((0, 1),), True), (True, ((0, 1), (1, 0)), True), (True, ((0, 1),), False)])
def test_regions_are_of_cells_that_the_online_branch_saw(
    monkeypatch: pytest.MonkeyPatch, momentum: float, stop: bool, pairs: tuple[tuple[int, int], ...], both: bool
) -> None:
    loss = {"use": "densesiam.region", "head": "clusters", "stop_gradient": stop}
    siamese, given = model(recipe(loss=[loss], masks={"use": "masks.random", "views": [0, 1]}, target={"momentum": momentum})), batch()
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(N, 2, 4)
    geometry = given.geometry._replace(boxes=whole, flips=torch.zeros(N, 2, dtype=torch.bool), pairs=pairs)
    hidden = [torch.rand(N, (SIDE // 4) ** 2, generator=torch.Generator().manual_seed(view)) < 0.5 for view in (0, 1)]
    weights: list[Tensor] = []

    def keep(features: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
        weights.append(weight.flatten(1))
        return region_sums(features, masks, weight)

    monkeypatch.setattr("twinview_densesiam.region.region_sums", keep)
    siamese(given._replace(geometry=geometry, hidden=tuple(hidden)), Progress(0, 10, 0, 1.0))
    seen = ~hidden[0] & ~hidden[1] if both or not momentum else ~hidden[0]
    assert len(weights) >= 2
    for weight in weights:
        torch.testing.assert_close(weight, seen.float(), rtol=0, atol=1e-4)


def test_views_that_do_not_meet_count_for_nothing() -> None:
    siamese, given = model(recipe()), batch()
    apart = given.geometry.boxes.clone()
    apart[0] = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]])
    parted = given._replace(geometry=given.geometry._replace(boxes=apart))
    outcome = siamese(parted, Progress(0, 10, 0, 1.0), watch=True)
    assert bool(outcome.loss.isfinite()) and float(outcome.notes["grid_sample/empty"]) == pytest.approx(1 / 3)
    nowhere = given._replace(geometry=given.geometry._replace(boxes=apart[:1].expand(N, -1, -1)))
    outcome = siamese(nowhere, Progress(0, 10, 0, 1.0))
    assert float(outcome.terms["pixel"]) == 0 and float(outcome.terms["region"]) == 0 and bool(outcome.loss.isfinite())


def test_inverse_weights_count_every_label_alike() -> None:
    from twinview_densesiam.segment import segment_loss

    z = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    z[:, 0] += 1.5  # most cells are of one cluster, and one cluster stays empty
    z[:, 5] -= 20
    flat, labels = z.movedim(1, -1).flatten(0, 2), z.argmax(1).flatten()
    own = -flat.log_softmax(1)[torch.arange(len(labels)), labels]
    by_label = torch.stack([own[labels == k].mean() for k in range(5)])
    assert float(segment_loss(z, torch.ones(2, 8, 8), "inverse")[0]) == pytest.approx(float(by_label.mean()))


def test_hidden_cells_have_no_pseudo_label() -> None:
    from twinview_densesiam.segment import segment_loss

    z, visible = torch.randn(2, 6, 8, 8), torch.zeros(2, 8, 8)
    visible[:, :4] = 1
    assert torch.allclose(segment_loss(z, visible, "frequency")[0], segment_loss(z[:, :, :4], torch.ones(2, 4, 8), "frequency")[0])


def test_a_step_in_bf16_is_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        table = recipe()
        siamese, given = model(table | {"run": {**table["run"], "precision": precision}}), batch()
        outcome = siamese(given, Progress(0, 10, 0, 1.0))
        assert outcome.loss.dtype == torch.float32
        losses.append(float(outcome.loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(("change", "message"), [
    ({"loss": [{"use": "densesiam.pixel", "auxiliary": 128}]}, "auxiliary counts clusters"),
    ({"loss": [{"use": "densesiam.pixel", "similarity": "cross_entropy", "auxiliary": 1}]}, "auxiliary counts clusters"),
    ({"loss": [{"use": "densesiam.region", "head": "cluster"}]}, "no [[head]] has the name 'cluster'. Did you mean 'clusters'?"),
    ({"loss": [{"use": "densesiam.region", "start": 1.5}]}, "start"),
    ({"loss": [{"use": "densesiam.region", "head": "clusters", "regions": 5}]}, "regions is of its own projector; leave it out"),
    ({"loss": [{"use": "densesiam.segment", "head": "clusters", "clusters": 5}]}, "clusters is of its own projector; leave it out"),
    ({"loss": [{"use": "densesiam.pixel", "head": "clusters", "channels": 5}]}, "channels is of its own projector; leave it out"),
])
def test_options_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(**change))
    assert message in str(caught.value)


def test_images_whose_views_do_not_meet_move_no_other_images_region_loss() -> None:
    """Their empty regions do not enter the BatchNorms of the region's heads; all others are in eval mode here."""
    siamese, given = model(recipe(loss=[{"use": "densesiam.region", "head": "clusters"}])), batch()
    siamese.eval()
    for name in ("projector", "predictor"):
        siamese.online.heads[f"densesiam/region/{name}"].train()

    def with_apart(n: int) -> Batch:
        boxes = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]]]).expand(n, 2, 4)
        added = given.geometry._replace(
            boxes=torch.cat([given.geometry.boxes, boxes]), flips=torch.cat([given.geometry.flips, torch.zeros(n, 2, dtype=torch.bool)]),
            source=torch.full((N + n, 2), 64.0),
        )
        images = tuple(torch.cat([x, x[:1].flip(3).expand(n, -1, -1, -1)]) for x in given.images)
        return Batch(tuple("abcdefg"[: N + n]), torch.arange(N + n), torch.arange(N + n), 0, images, added, (None, None))

    found = [siamese(with_apart(n), Progress(0, 10, 0, 1.0)).terms["region"] for n in (0, 2)]
    torch.testing.assert_close(found[1], found[0])
    alone = given._replace(geometry=given.geometry._replace(boxes=with_apart(N).geometry.boxes[N:]))
    nothing = siamese(alone, Progress(0, 10, 0, 1.0))
    nothing.loss.backward()
    assert float(nothing.terms["region"]) == 0 and all(p.grad is not None for p in siamese.online.heads["densesiam/region/projector"].parameters())
