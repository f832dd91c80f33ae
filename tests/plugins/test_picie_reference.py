"""PiCIE beside tensors made by the official code: a training step of a slice, and a whole epoch where the file is at hand."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branches
from twinview.ops import euclidean_kmeans
from twinview.ops.cell_clusters import ClusteredCells
from twinview.sample_store import SampleStores
from twinview.values import Alignment, Features, Geometry, Progress, Step
from twinview_densesiam.align import replayed
from twinview_picie.clusters import Clusters

FOLDER = Path(__file__).parent / "fixtures" / "picie"
K, GRID = 5, (8, 8)
Case = dict[str, Any]


class Net(nn.Module):
    """The stand-in of the reference: cells of 4 x 4 pixels."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.Conv2d(12, 16, 1)
        self.load_state_dict(state)

    def forward(self, images: Tensor) -> Features:
        return Features(cells=self.out(F.relu(self.bn(self.conv(images)))))


class Images:
    """The stored views by image number, as views of a batch and as the data of an epoch."""

    def __init__(self, case: Case, net: Net) -> None:
        self.case, self.net = case, net

    def geometry(self, ids: list[int]) -> Geometry:
        """View 1 is the crop, mirrored where the draw says so, view 2 the whole."""
        scale, (row, column) = self.case["rscale"][ids], self.case["rcrop"][ids].T
        low = torch.stack([column * (1 - scale), row * (1 - scale)], 1)
        boxes = torch.stack([torch.cat([low, low + scale[:, None]], 1), torch.tensor([[0.0, 0, 1, 1]]).double().expand(len(ids), 4)], 1)
        flips = torch.stack([self.case["flip_draw"][ids] < 0.5, torch.zeros(len(ids), dtype=torch.bool)], 1)
        notes = {"crop_scale": scale, "crop_row": row, "crop_column": column}
        return Geometry(boxes, flips, torch.full((len(ids), 2), 64.0), ((32, 32), (32, 32)), ((0, 1), (1, 0)), notes)

    def view(self, ids: list[int], view: int) -> Tensor:
        """View 1 of the release is cut from the normalized 64-pixel image, resized and mirrored; view 2 is stored as the network sees it."""
        if view:
            found: Tensor = self.case["view2"][ids]
            return found
        return replayed(self.case["view1"][ids], self.geometry(ids), (32, 32)).float()

    def alignment(self, batch: Any, online: int, target: int, name: str = "") -> Alignment:
        geometry = batch.geometry
        return Alignment(lambda maps: maps, lambda maps: replayed(maps, geometry, GRID), torch.ones(len(batch.ids), *GRID))

    def views(self, epoch: int) -> Iterator[Any]:
        for ids in self.case["order"].view(-1, 4).tolist():
            yield self.batch(ids)

    def batch(self, ids: list[int]) -> Any:
        numbers = torch.tensor(ids)
        return SimpleNamespace(keys=tuple(map(str, ids)), ids=numbers, seeds=numbers, places=numbers, epoch=0, geometry=self.geometry(ids))

    def features(self, branch: Any, batch: Any, view: int = 0, *, train: bool = False, move_statistics: bool = False) -> Features:
        assert train == move_statistics
        self.net.train(train)
        return cast(Features, self.net(self.view(batch.ids.tolist(), view)))


def branches_of(part: Clusters, state: ClusteredCells, stores: SampleStores) -> Branches:
    branch: Any = SimpleNamespace(of=lambda owner, name: state, key=lambda owner, name: name)
    return Branches(
        branch, branch, lambda: nn.Identity(),
        new_samples=lambda owner, name, epoch, shape: stores.new(name, epoch, shape), samples=lambda owner, name, epoch: stores.get(name, epoch),
    )


def step_of(images: Images, branches: Branches, ids: list[int]) -> Step:
    batch = images.batch(ids)
    online = [images.net(images.view(ids, view)) for view in (0, 1)]
    return cast(Step, SimpleNamespace(
        batch=batch, pairs=((0, 1), (1, 0)), online=online, branches=branches, progress=Progress(0, 4, 0, 0.0), hidden=(None, None),
        alignment=lambda i, j, name: images.alignment(batch, i, j),
    ))


def train_step(part: Clusters, images: Images, branches: Branches, ids: list[int]) -> tuple[Tensor, list[float]]:
    images.net.train()
    found = part.loss(step_of(images, branches, ids))
    loss = sum(found.values(), torch.zeros(()))
    return loss, [2 * float(found["across"].detach()), 2 * float(found["within"].detach()), float(loss.detach())]


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    gap = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert gap <= tolerance, f"{what}: {gap:.1e}"


def check_gradients(net: Net, expected: dict[str, Tensor]) -> None:
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        found = net.get_parameter(name).grad
        assert found is not None
        assert float((found - gradient).abs().max()) <= 1e-6 * largest, name


def test_a_training_step_of_the_slice() -> None:
    case = torch.load(FOLDER / "slice.pt", weights_only=True)
    for name in ("rscale", "rcrop", "flip_draw"):
        case[name] = case[name][case["batch"]]
    net = Net(case["state"] | {f"bn.{k}" if not k.startswith("bn") else k: v for k, v in case["state_bn_after_kmeans2"].items()})
    part, state, stores, images = Clusters(clusters=K), ClusteredCells(2, K, 16), SampleStores(5), Images(case, net)
    state.centroids.copy_(torch.stack([case["centroids1"], case["centroids2"]]))
    state.weights.copy_(torch.stack([case["weight1"], case["weight2"]]))
    stores.new("cells", 0, (2, *GRID)).write(torch.arange(5), torch.stack([case["labels1"], case["labels2"]], 1) + 1)
    loss, values = train_step(part, images, branches_of(part, state, stores), [0, 1, 2, 3, 4])
    assert np.allclose(values, case["losses"][0, :3].tolist(), rtol=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    check_gradients(net, case["grads_first_step"])


def test_a_whole_epoch(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = torch.load(shared / "reference/baselines/picie.pt", weights_only=True)
    kmeans = torch.load(FOLDER / "kmeans.pt", weights_only=True)
    net = Net(case["state"])
    part, state, stores, images = Clusters(clusters=K, initial=8), ClusteredCells(2, K, 16), SampleStores(20), Images(case, net)
    branches = branches_of(part, state, stores)
    first = kmeans["features"][: kmeans["init_rows"]]
    rows = [int((first - pick).abs().sum(1).argmin()) for pick in kmeans["picks"]]  # faiss began with the same rows of both views
    losses, moved = [], []

    def start(points: Tensor, draws: Tensor, k: int) -> Tensor:
        moved.append({k: v.clone() for k, v in net.state_dict().items() if k.startswith("bn.r")})
        return points[rows]

    monkeypatch.setattr(euclidean_kmeans, "smallest", start)
    finish = euclidean_kmeans.StreamingKMeans.finish

    def finished(self: euclidean_kmeans.StreamingKMeans) -> tuple[Tensor, Tensor]:
        found = finish(self)
        losses.append(float(found[1]))
        moved.append({k: v.clone() for k, v in net.state_dict().items() if k.startswith("bn.r")})
        return found

    monkeypatch.setattr(euclidean_kmeans.StreamingKMeans, "finish", finished)
    part.before_epoch(branches, cast(Any, images), Progress(0, 4, 0, 0.0), np.random.default_rng(0))
    for name, value in case["state_bn_after_kmeans1"].items():
        if "running" in name:
            near(moved[1][name if name.startswith("bn") else f"bn.{name}"], value, 1e-6, name)
    near(state.centroids[0], case["centroids1"], 1e-6, "centroids1")
    assert losses[0] == pytest.approx(float(case["kmeans_loss"][0]), rel=1e-6)
    stored = stores.get("cells", 0).read(torch.arange(20)).long() - 1
    assert torch.equal(stored[:, 0], case["labels1"])
    near(state.weights[0], case["weight1"], 1e-6, "weight1")
    for name, value in case["state_bn_after_kmeans2"].items():
        if "running" in name:
            near(net.state_dict()[name if name.startswith("bn") else f"bn.{name}"], value, 1e-6, name)
    near(state.centroids[1], case["centroids2"], 1e-6, "centroids2")
    assert losses[1] == pytest.approx(float(case["kmeans_loss"][1]), rel=1e-6)
    assert torch.equal(stored[:, 1], case["labels2"])
    near(state.weights, torch.stack([case["weight1"], case["weight2"]]), 1e-6, "weights")

    optimizer = torch.optim.Adam(net.parameters(), lr=case["meta"]["adam_lr"])
    for n, (ids, expected) in enumerate(zip(case["batches"], case["losses"])):
        loss, values = train_step(part, images, branches, list(ids))
        assert np.allclose(values, expected[:3].tolist(), rtol=2e-6), n
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if n == 0:
            check_gradients(net, case["grads_first_step"])
        optimizer.step()
    for name, value in case["state_after"].items():
        if name not in ("conv.bias", "bn.running_mean"):  # a bias before a BatchNorm: its true gradient is zero, and the running mean follows it
            assert float((net.state_dict()[name].double() - value.double()).abs().max()) <= 5e-7, name
