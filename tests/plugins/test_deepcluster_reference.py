"""DeepCluster's whitening, k-means and edges beside the official tensors, and a training pass of Modified Deep Clustering where the files are at hand."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops.cell_clusters import ClusteredCells
from twinview.ops.euclidean_kmeans import gathered_sums, lloyd, nearest
from twinview.ops.sobel import sobel
from twinview.ops.whiten import whitened
from twinview.sample_store import SampleStores
from twinview.values import Geometry, Progress, Step
from twinview_deepcluster.cells import Cells, UnitClassifier
from twinview_deepcluster.images import Images
from twinview_densesiam.align import replayed


@pytest.fixture(params=["slice", "whole"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The tensors; the slice has all of the clustering."""
    slices = Path(__file__).parent / "fixtures" / "deepcluster" / "slice.pt"
    path = slices if request.param == "slice" else request.getfixturevalue("shared") / "reference/baselines/deepcluster.pt"
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_whitening_up_to_signs(case: dict[str, Any]) -> None:
    found = whitened(case["features"], case["whitened"].shape[1])
    signs = (found * case["whitened"]).sum(0).sign()
    assert float((found * signs - case["whitened"]).abs().max()) <= 1e-4  # its eigenvectors are float32
    again = whitened(case["features"].flip(0), case["whitened"].shape[1]).flip(0)
    assert torch.allclose(found, again, atol=1e-6)


def test_k_means_from_the_same_picks(case: dict[str, Any]) -> None:
    points = case["whitened"]
    centroids, counts, _ = lloyd(points, case["picks"], 20, np.random.default_rng(0))
    assert torch.allclose(centroids, case["centroids"], rtol=0, atol=1e-6)
    assert torch.equal(nearest(points, centroids), case["assignment"]) and torch.equal(counts.long(), case["sizes"][:-1])
    assert float(gathered_sums(points, centroids)[2]) == pytest.approx(float(case["objective"][-1]), rel=1e-5)
    assert float(gathered_sums(points, case["picks"])[2]) == pytest.approx(float(case["objective"][0]), rel=1e-5)


def test_edges(case: dict[str, Any]) -> None:
    assert torch.allclose(sobel(case["image"].mean(1, keepdim=True)), case["sobel"], rtol=0, atol=1e-5)


def test_every_cluster_is_as_often_in_an_epoch(case: dict[str, Any]) -> None:
    """What the paper describes; the release draws so and then mixes up two orders, so that clusters come about as often as they are large."""
    part: Any = Images(clusters=7)
    state = SimpleNamespace(clusters=torch.cat([case["assignment"].int(), torch.tensor([-1], dtype=torch.int32)]))
    weights = part.sample_weights(SimpleNamespace(online=SimpleNamespace(of=lambda *_: state)))
    assert weights[-1] == 0
    shares = torch.zeros(7, dtype=torch.float64).index_add_(0, case["assignment"], weights[:-1])
    assert torch.allclose(shares, torch.ones(7, dtype=torch.float64))


class Net(nn.Module):
    """The stand-in of the reference: cells of 4 x 4 pixels."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12), nn.Conv2d(12, 16, 1)
        self.load_state_dict(state)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.out(F.relu(self.bn(self.conv(images))))
        return found


def test_a_training_pass_of_modified_deep_clustering(shared: Path) -> None:
    folder = shared / "reference/baselines"
    case, images = torch.load(folder / "deepcluster.pt", weights_only=True)["mdc"], torch.load(folder / "picie.pt", weights_only=True)
    net, classifier = Net(case["state"]).train(), UnitClassifier(16, 5)
    classifier.conv.load_state_dict(case["classifier"])
    state, stores = ClusteredCells(1, 5, 16), SampleStores(20)
    state.weights[0] = images["weight1"]
    stores.new("cells", 0, (1, 8, 8)).write(torch.arange(20), images["labels1"][:, None].byte() + 1)
    part = Cells(clusters=5)
    branches: Any = SimpleNamespace(online=SimpleNamespace(of=lambda owner, name: state), samples=lambda owner, name, epoch: stores.get(name, epoch))
    optimizers = [torch.optim.Adam(m.parameters(), lr=case["meta"]["adam_lr"]) for m in (net, classifier)]
    for ids, expected in zip(case["batches"], case["losses"].tolist()):
        scale, (row, column) = images["rscale"][ids], images["rcrop"][ids].T
        flips = torch.stack([images["flip_draw"][ids] < 0.5, torch.zeros(len(ids), dtype=torch.bool)], 1)
        geometry = Geometry(torch.zeros(len(ids), 2, 4), flips, torch.zeros(len(ids), 2), ((32, 32),) * 2, ((0, 1),),
                            {"crop_scale": scale, "crop_row": row, "crop_column": column})
        cells = net(replayed(images["view1"][ids], geometry, (32, 32)).float())
        step = cast(Step, SimpleNamespace(
            pairs=((0, 1),), head=lambda owner, name: name, apply=lambda head, view, role, c=cells: classifier(c), branches=branches,
            batch=SimpleNamespace(places=torch.tensor(ids)), progress=Progress(0, 4, 0, 0.0), hidden=(None, None),
        ))
        loss = part.loss(step)["cells"]
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    for name, value in case["state_after"].items():
        if name not in ("conv.bias", "bn.running_mean"):  # a bias before a BatchNorm: its true gradient is zero, and the running mean follows it
            assert float((net.state_dict()[name].double() - value.double()).abs().max()) <= 5e-7, name
    for name, value in case["classifier_after"].items():
        assert float((classifier.conv.state_dict()[name] - value).abs().max()) <= 5e-7, name


def test_the_classifier_starts_as_published(shared: Path) -> None:
    expected = torch.load(shared / "reference/baselines/deepcluster.pt", weights_only=True)["mdc"]["classifier_init_std"]
    torch.manual_seed(0)
    assert float(UnitClassifier(16, 27).conv.weight.detach().std()) == pytest.approx(expected, rel=0.2)
