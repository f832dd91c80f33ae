from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.assembly import assemble
from twinview.data.loading.factory import Paths
from twinview.errors import RecipeError
from twinview.model import Outcome, Siamese, make_model
from twinview.ops.sheet import palette
from twinview.recipe import read
from twinview.values import Alignment, Batch, DataFactory, Geometry, Progress
from twinview_multisiam.clusters import Clusters, own_centroid
from twinview_multisiam.pictures import numbered, tint
from twinview_multisiam.watch import border_information, occupancy_entropy, watch

START = Progress(0, 10, 0, 0.0)


# ---- without an encoder: the loss on given maps
class Given:
    """A step of given projections: `online[v]` and `target[v]` are what the projector gave."""

    pairs = ((0, 1), (1, 0))
    watch = False

    def __init__(self, online: list[Tensor], target: list[Tensor], predictor: nn.Module, weight: Tensor | None = None, extra: Tensor | None = None) -> None:
        self.maps = {"online": online, "target": target}
        self.weight = torch.ones(len(online[0]), *online[0].shape[2:]) if weight is None else weight
        self.extra = extra
        self.branches = self
        self.online = self
        self.predictor = predictor

    def of(self, part: object, name: str) -> nn.Module:
        assert name == "predictor"
        return self.predictor

    def head(self, part: object, name: str) -> str:
        return name

    def apply(self, head: str, view: int, role: str) -> Tensor:
        assert head == "projector"
        return self.maps[role][view]

    def alignment(self, online: int, target: int, name: str) -> Alignment:
        return Alignment(lambda m: m, lambda m: m, self.weight, self.extra)

    def uniform(self, purpose: str, n: int) -> Tensor:
        return torch.rand(len(self.weight), n, generator=torch.Generator().manual_seed(len(purpose)))


def maps(seed: int, n: int = 4, channels: int = 8, size: int = 5) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def given(**options: Any) -> Given:
    torch.manual_seed(0)
    told = 8 + (options["extra"].shape[1] if options.get("extra") is not None else 0)
    return Given([maps(0), maps(1)], [maps(2), maps(3)], nn.Conv2d(told, 8, 1), **options)


def value(part: Clusters, step: Any) -> Tensor:
    return part.loss(step)["clusters"]


def test_one_cluster_asks_for_the_mean_of_the_overlap() -> None:
    part, step = Clusters(clusters=1), given()
    expected = []
    for online, target in step.pairs:
        y = part.predict(step.predictor, step.maps["online"][online], step.alignment(online, target, ""))
        mean = F.normalize(step.maps["target"][target], dim=1).mean((2, 3), keepdim=True)
        expected.append(-F.cosine_similarity(y, mean, dim=1).mean())
    torch.testing.assert_close(value(part, step), torch.stack(expected).mean())


def test_as_many_clusters_as_cells_ask_for_the_same_cell() -> None:
    part, step = Clusters(clusters=25), given()
    expected = []
    for online, target in step.pairs:
        y = part.predict(step.predictor, step.maps["online"][online], step.alignment(online, target, ""))
        expected.append(-F.cosine_similarity(y, step.maps["target"][target], dim=1).mean())
    torch.testing.assert_close(value(part, step), torch.stack(expected).mean())


def test_the_target_of_a_cell_is_its_clusters_centroid() -> None:
    centroids, assignment = Clusters(clusters=3).cluster(maps(0), torch.zeros(4))
    found = own_centroid(centroids, assignment)
    for image in range(4):
        for row in range(5):
            for column in range(5):
                assert torch.equal(found[image, :, row, column], centroids[image, assignment[image, row, column]])
    cosines = torch.einsum("bkc,bchw->bkhw", centroids, maps(0))
    assert torch.equal(cosines.argmax(1), assignment)


def test_the_loss_lies_in_its_range_and_reaches_both_ends() -> None:
    step = given()
    for seed in range(0, 20, 4):
        step.maps = {"online": [maps(seed), maps(seed + 1)], "target": [maps(seed + 2), maps(seed + 3)]}
        assert -1 <= value(Clusters(), step) <= 1
    identity = nn.Conv2d(8, 8, 1, bias=False)
    nn.init.dirac_(identity.weight)
    one = maps(0, size=1).expand(-1, -1, 5, 5)  # every cell the same
    assert value(Clusters(), Given([one, one], [one, one], identity)).item() == pytest.approx(-1, abs=1e-5)
    assert value(Clusters(), Given([one, one], [-one, -one], identity)).item() == pytest.approx(1, abs=1e-5)


def test_no_gradient_reaches_target_or_centroids() -> None:
    step = given()
    for role in step.maps.values():
        for z in role:
            z.requires_grad_()
    value(Clusters(), step).backward()  # type: ignore[no-untyped-call]
    assert all(z.grad is None for z in step.maps["target"])
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in step.maps["online"])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in step.predictor.parameters())
    assert not Clusters().cluster(maps(0).requires_grad_(), torch.zeros(4))[0].requires_grad


@pytest.mark.parametrize("normalize_values", [True, False])
def test_prediction_is_equivariant_to_the_order_of_cells(normalize_values: bool) -> None:
    part, step = Clusters(normalize_values=normalize_values), given()
    order = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    alignment = step.alignment(0, 1, "")

    def shuffle(m: Tensor) -> Tensor:
        return m.flatten(2)[..., order].view_as(m)

    torch.testing.assert_close(part.predict(step.predictor, shuffle(maps(0)), alignment), shuffle(part.predict(step.predictor, maps(0), alignment)))


def test_normalized_values_vote_alike() -> None:
    step = given()
    step.predictor = nn.Identity()
    alignment = step.alignment(0, 1, "")
    louder = maps(0).clone()
    louder[:, :, 2, 2] *= 50
    same, other = Clusters(), Clusters(normalize_values=False)
    torch.testing.assert_close(same.predict(step.predictor, louder, alignment), same.predict(step.predictor, maps(0), alignment))
    assert not torch.allclose(other.predict(step.predictor, louder, alignment), other.predict(step.predictor, maps(0), alignment), atol=0.1)


def test_what_an_alignment_tells_goes_into_q_only() -> None:
    step = given(extra=maps(9)[:, :2])
    part = Clusters()
    with_extra, without = step.alignment(0, 1, ""), step.alignment(0, 1, "")._replace(extra=torch.zeros(4, 2, 5, 5))
    assert not torch.allclose(part.predict(step.predictor, maps(0), with_extra), part.predict(step.predictor, maps(0), without))
    with torch.no_grad():
        next(step.predictor.parameters())[:, :2] = 0  # deaf to it: nothing else may have heard
    assert torch.equal(part.predict(step.predictor, maps(0), with_extra), part.predict(step.predictor, maps(0), without))


def test_an_image_without_weight_counts_for_nothing() -> None:
    weight = torch.ones(4, 5, 5)
    weight[2] = 0
    step = given(weight=weight)
    loss = value(Clusters(), step)
    step.maps = {role: [m.index_fill(0, torch.tensor(2), 7.0) for m in found] for role, found in step.maps.items()}
    torch.testing.assert_close(value(Clusters(), step), loss)


def test_a_cell_without_weight_neither_votes_nor_is_asked() -> None:
    weight = torch.ones(4, 5, 5)
    weight[:, 1, 3] = 0
    step = given(weight=weight)
    loss = value(Clusters(), step)
    for found in step.maps.values():
        for z in found:
            z[:, :, 1, 3] = 7.0
    torch.testing.assert_close(value(Clusters(), step), loss)


def test_no_weight_at_all_is_a_loss_of_zero_with_finite_gradient() -> None:
    step = given(weight=torch.zeros(4, 5, 5))
    loss = value(Clusters(), step)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in step.predictor.parameters())


# ---- what is logged
def test_entropy_of_the_occupancy() -> None:
    even = torch.arange(24).view(1, 4, 6) % 3
    weight = torch.ones(2, 4, 6)
    weight[1] = (even[0] == 1).float()
    found = occupancy_entropy(even.expand(2, -1, -1), 3, weight)
    assert found.tolist() == pytest.approx([math.log(3), 0], abs=1e-6)


def test_clusters_that_are_the_border_tell_all_about_it() -> None:
    ring = torch.ones(7, 7, dtype=torch.long)
    ring[1:-1, 1:-1] = 0
    halves = torch.zeros(7, 7, dtype=torch.long)
    halves[:, 0], halves[0, 1:] = 1, 1
    p = 24 / 49
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = border_information(torch.stack([ring, 1 - ring, torch.zeros_like(ring), halves]), 2, torch.ones(4, 7, 7))
    assert found[:3].tolist() == pytest.approx([entropy, entropy, 0], abs=1e-5)
    assert 0 < found[3] < entropy


def test_spread_is_an_alarm() -> None:
    weight, clusters = torch.ones(64, 5, 5), torch.zeros(64, 5, 5, dtype=torch.long)
    spread = watch(maps(0, 64, 32), clusters, 3, weight)["spread"]
    assert spread == pytest.approx(1, abs=0.02)
    collapsed = watch(maps(0, 1, 32, 1) + 0.01 * maps(1, 64, 32), clusters, 3, weight)["spread"]
    assert collapsed < 0.02


def test_images_without_weight_are_left_out_of_what_is_logged() -> None:
    weight, clusters = torch.ones(2, 4, 6), (torch.arange(24).view(4, 6) % 3).expand(2, -1, -1)
    weight[1] = 0
    assert watch(maps(0, 2), clusters, 3, weight)["entropy"] == pytest.approx(math.log(3))


# ---- in a recipe
def recipe(toy: dict[str, Any], align: str = "roi", run: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    clusters = {"use": "multisiam.clusters", "hidden": 32, "channels": 16, **options}
    views = {"use": "multisiam.iou_crops", "size": 56}  # 7 x 7 cells of the toy encoder
    return {**toy, "views": views, "align": {"use": f"multisiam.{align}"}, "loss": [clusters], "run": {**toy["run"], **(run or {})}}


def model(table: dict[str, Any]) -> Siamese:
    assembly = assemble(read(table))
    return make_model(assembly, 100, data=cast(DataFactory, Paths(assembly.recipe)))


def batch(siamese: Siamese, n: int = 4, seed: int = 0, epoch: int = 0) -> Batch:
    """Smooth random pictures with the sampler's geometry (the pixels need not fit it here)."""
    rng = np.random.default_rng(seed)
    found = [siamese.assembly.calls.sample_views(size=(200, 300), rng=rng) for _ in range(n)]
    boxes, flips, source = (torch.stack(tensors) for tensors in zip(*[g[:3] for g in found]))
    geometry = Geometry(boxes, flips, source, found[0].sizes, found[0].pairs)
    noise = torch.from_numpy(rng.random((2, n, 3, 9, 9), np.float32))
    images = tuple((F.interpolate(view, (56, 56), mode="bilinear") * 255).byte() for view in noise)
    return Batch(tuple(map(str, range(n))), torch.arange(n), torch.arange(n) + 1000 * seed, epoch, images, geometry, (None, None))


def run(siamese: Siamese, watched: bool = False, **options: Any) -> Outcome:
    outcome: Outcome = siamese(batch(siamese, **options), START, watch=watched)
    return outcome


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("align", ["roi", "offset", "none"])
def test_every_alignment_trains_finite_under_every_precision(toy: dict[str, Any], align: str, precision: str) -> None:
    siamese = model(recipe(toy, align, {"precision": precision}))
    outcome = run(siamese)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    assert outcome.loss.dtype == torch.float32 and -1 <= outcome.loss <= 1
    assert list(outcome.terms) == ["clusters"] and outcome.notes == {}
    for name, parameter in siamese.online.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert siamese.target is not None and all(p.grad is None for p in siamese.target.parameters())
    assert [*siamese.target.heads] == ["multisiam/clusters/projector"]


@pytest.mark.parametrize("align", ["roi", "offset", "none"])
def test_cells_that_are_hidden_from_the_online_branch_are_not_asked(toy: dict[str, Any], align: str) -> None:
    siamese = model({**recipe(toy, align), "masks": {"use": "toy.masks"}})
    hidden = torch.zeros(4, 49, dtype=torch.bool)
    hidden[:, 10:30] = True
    outcome: Outcome = siamese(batch(siamese)._replace(hidden=(hidden, None)), START)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    assert -1 <= outcome.loss <= 1 and all(p.grad is not None and p.grad.isfinite().all() for p in siamese.online.parameters())
    seen = [outcome.step.alignment(*pair).weight.mean().item() for pair in outcome.step.pairs]
    assert 0.3 < seen[0] < 0.8 and seen[1] == 1


def test_offset_widens_the_predictor_by_two(toy: dict[str, Any]) -> None:
    def inputs(align: str, predictor: str) -> list[int]:
        heads = model(recipe(toy, align, predictor=predictor)).online.heads["multisiam/clusters/predictor"]
        return [m.in_channels for m in heads.modules() if isinstance(m, nn.Conv2d)]

    assert inputs("roi", "mlp") == [16, 32] and inputs("offset", "mlp") == [18, 32]
    assert inputs("none", "linear") == [16] and inputs("offset", "linear") == [18]


def test_the_same_samples_and_epoch_give_the_same_clusters(toy: dict[str, Any]) -> None:
    def clusters(epoch: int = 0, iterations: int = 10) -> Tensor:
        siamese = model(recipe(toy, iterations=iterations))
        step = run(siamese, epoch=epoch).step
        part: Any = siamese.assembly.parts["multisiam.clusters"]
        cells = step.apply(step.head(part, "projector"), 1, "target")
        assignment: Tensor = part.cluster(cells, step.uniform("kmeans/0/1", 1)[:, 0])[1]
        return assignment

    assert torch.equal(clusters(), clusters())
    assert not torch.equal(clusters(iterations=0), clusters(1, iterations=0))  # another epoch starts elsewhere
    one, other = (run(model(recipe(toy))).loss for _ in range(2))
    assert torch.equal(one, other)


def test_numbers_are_noted_where_the_step_is_watched(toy: dict[str, Any]) -> None:
    notes = run(model(recipe(toy)), watched=True).notes
    assert 0 < notes["clusters/entropy"] <= math.log(3) + 1e-6
    assert 0 <= notes["clusters/border"] < math.log(2) and 0 < notes["clusters/spread"] < 1.1


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.5, 0.5)])
def test_the_weights_are_lambda_and_one_leaves_byol(toy: dict[str, Any], weights: tuple[float, float]) -> None:
    image = {"use": "byol.image", "hidden": 32, "channels": 16}
    both = recipe(toy)
    both["loss"] = [{**image, "weight": weights[0]}, {**both["loss"][0], "weight": weights[1]}]
    byol = recipe(toy)
    del byol["align"]
    mixed_model, byol_model = model(both), model({**byol, "loss": [image]})
    mixed, alone = run(mixed_model), run(byol_model)
    assert {*mixed.terms} == {"image", "clusters"}
    assert torch.equal(mixed.terms["image"], alone.loss.detach())
    torch.testing.assert_close(mixed.loss.detach(), weights[0] * alone.loss.detach() + weights[1] * mixed.terms["clusters"])
    if weights == (1.0, 0.0):
        mixed.loss.backward()  # type: ignore[no-untyped-call]
        alone.loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in byol_model.online.named_parameters():
            torch.testing.assert_close(mixed_model.online.get_parameter(name).grad, parameter.grad)


def short_run(siamese: Siamese, steps: int, lr: float) -> tuple[list[float], list[float]]:
    """Losses and spreads of the projections."""
    optimizer = torch.optim.SGD(siamese.online.parameters(), lr=lr, momentum=0.9)
    losses, spreads = [], []
    for step in range(steps):
        outcome = run(siamese, watched=True, n=8, seed=step)
        optimizer.zero_grad()
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        siamese.follow(0.9)
        losses.append(outcome.loss.item())
        spreads.append(outcome.notes["clusters/spread"].item())
    return losses, spreads


def test_projections_stay_spread_over_a_short_run(toy: dict[str, Any]) -> None:
    losses, spreads = short_run(model(recipe(toy)), 30, 0.05)
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert min(spreads) > 0.5, spreads


def test_without_predictor_and_average_the_spread_tells_of_the_collapse(toy: dict[str, Any]) -> None:
    siamese = model({**recipe(toy), "target": {"momentum": 0}})
    siamese.online.heads["multisiam/clusters/predictor"] = nn.Identity()
    losses, spreads = short_run(siamese, 20, 0.5)
    assert losses[-1] < -0.99 and spreads[-1] < 0.25 < 0.6 < spreads[0]


def test_pictures_show_views_and_their_clusters(toy: dict[str, Any]) -> None:
    data: Any = None  # it draws the step's own images
    siamese = model(recipe(toy))
    outcome = run(siamese)
    (found,) = [answer["clusters"] for answer in siamese.assembly.calls.pictures(step=outcome.step, data=data)]
    assert found.dtype == torch.uint8 and found.shape[0] == 3 and found.shape[1] > 4 * 190 and found.shape[2] > 4 * 190
    step: Any = outcome.step
    part: Any = siamese.assembly.parts["multisiam.clusters"]
    cells = step.apply(step.head(part, "projector"), 0, "target")
    clusters = part.cluster(cells, step.uniform("kmeans/0", 1)[:, 0])[1][0]
    numbers = numbered(step.batch.geometry, {0: clusters}, 0, part.clusters)[0]
    panel = tint(torch.full((3, 56, 56), 90, dtype=torch.uint8), torch.tensor(palette(part.clusters), dtype=torch.uint8)[numbers])
    hues = panel.float().view(3, 7, 8, 7, 8).mean((2, 4)).flatten(1).T  # [49, 3]: a cluster's cells share a tint
    for k in clusters.unique():
        assert hues[clusters.flatten() == k].std(0).nan_to_num().max() < 8


def test_colors_of_clusters_mean_the_same_in_both_views() -> None:
    """The second view is the first one's left half, mirrored; its clusters are numbered otherwise."""
    boxes = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 0.5, 1]]])
    geometry = Geometry(boxes, torch.tensor([[False, True]]), torch.tensor([[8, 8]]), ((8, 8),) * 2, ((0, 1), (1, 0)))
    first = torch.tensor([[0, 1, 2, 2]] * 2 + [[3, 1, 2, 2]] * 2)
    second = torch.tensor([[2, 2, 3, 3]] * 2 + [[2, 2, 0, 0]] * 2)  # mirrored: cluster 1 on the left, then 0 above 3
    found = numbered(geometry, {0: first, 1: second}, 0, 4)
    assert torch.equal(found[1][:, :2], found[0][:, 1:2].expand(4, 2)) and torch.equal(found[1][:, 2:], found[0][:, :1].expand(4, 2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clusters": 0}, "clusters must be >= 1: 0"),
        ({"clusters": 50}, "clusters = 50, and the views have 7 x 7 cells. Raise views.size, or choose encoder cells of a smaller stride."),
        ({"gamma": 0.5}, "gamma must be >= 1: 0.5"),
        ({"iterations": -1}, "iterations must be >= 0: -1"),
        ({"channels": 0}, "channels must be >= 1: 0"),
        ({"predictor": "conv"}, ".predictor: wants one of 'mlp', 'linear', not 'conv'"),
        ({"cluster": 3}, "nothing takes 'cluster'. Did you mean 'clusters'?"),
    ],
    ids=str,
)
def test_bad_options_are_refused(toy: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape("[[loss]] multisiam.clusters") + ".*" + re.escape(said)):
        model(recipe(toy, **options))


def test_as_many_clusters_as_cells_are_allowed(toy: dict[str, Any]) -> None:
    assert run(model(recipe(toy, clusters=49))).loss.isfinite()


def test_an_encoder_without_cells_and_a_recipe_without_alignment_are_refused(toy: dict[str, Any]) -> None:
    table = recipe(toy)
    with pytest.raises(RecipeError, match="needs cells"):
        assemble(read({**table, "encoder": {"use": "toy.encoder", "gives": ["pooled"]}}))
    del table["align"]
    with pytest.raises(RecipeError, match="needs an alignment"):
        assemble(read(table))
