"""K-means by Euclidean distance: the official tensors of PiCIE and DeepCluster, empty clusters, and ranks."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinview.ops.euclidean_kmeans import StreamingKMeans, lloyd, nearest

FIXTURES = Path(__file__).parents[1] / "plugins" / "fixtures"


@pytest.fixture
def picie() -> Any:
    """The whole file: it is small."""
    return torch.load(FIXTURES / "picie" / "kmeans.pt", weights_only=True)


def test_picie_s_streaming_k_means(picie: Any) -> None:
    case, rows = picie, picie["rows_per_batch"]
    features = case["features"]
    draws = torch.ones(len(features), dtype=torch.float64)
    for n, pick in enumerate(case["picks"]):  # where faiss began
        draws[(features[: case["init_rows"]] - pick).abs().sum(1).argmin()] = n / 100
    means = StreamingKMeans(5, case["init_rows"] // rows, 20, np.random.default_rng(0))
    seen = []
    for batch, own in zip(torch.split(features, rows), torch.split(draws, rows)):
        if means.centroids is not None:
            seen.append(means.centroids)
        means.add(batch, own)
    centroids, loss = means.finish()
    assert torch.allclose(seen[0], case["init_centroids"], rtol=0, atol=1e-6)
    assert torch.allclose(torch.stack(seen), case["centroids_before_batch"], rtol=0, atol=1e-6)
    assert torch.allclose(centroids, case["centroids"], rtol=0, atol=1e-6)
    assert float(loss) == pytest.approx(float(case["kmeans_loss"]), rel=1e-6)


def test_an_empty_cluster_takes_half_of_a_large_one() -> None:
    torch.manual_seed(0)
    points = torch.cat([torch.randn(50, 4) * 0.1, torch.randn(50, 4) * 0.1 + 5])
    start = torch.stack([points[0], points[60], torch.full((4,), 100.0)])
    centroids, counts, _ = lloyd(points, start, 20, np.random.default_rng(0))
    assert float(counts.sum()) == 100 and bool((counts > 0).all()) and bool((centroids.abs() < 10).all())
    again, _, _ = lloyd(points, start, 20, np.random.default_rng(0))
    assert torch.equal(centroids, again)


def test_the_start_does_not_depend_on_the_order_of_the_points() -> None:
    torch.manual_seed(0)
    points, draws, order = torch.randn(200, 3), torch.rand(200, dtype=torch.float64), torch.randperm(200)
    found = []
    for p, d in ((points, draws), (points[order], draws[order])):
        means = StreamingKMeans(4, 1, 5, np.random.default_rng(0))
        means.add(p, d)
        found.append(means.finish()[0])
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_fewer_points_than_clusters_is_said() -> None:
    means = StreamingKMeans(4, 1, 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="3 points for 4 clusters"):
        means.add(torch.randn(3, 2), torch.rand(3, dtype=torch.float64))


def test_nearest_is_the_least_distance() -> None:
    torch.manual_seed(0)
    points, centroids = torch.randn(100, 5), torch.randn(7, 5)
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(1))
