from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.kmeans import spherical_kmeans


def draw(sets: int = 4, points: int = 49, channels: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(sets, points, channels, generator=torch.Generator().manual_seed(seed))


def start(sets: int, u: float = 0.3) -> Tensor:
    return torch.full((sets,), u)


def objective(points: Tensor, centroids: Tensor, assignment: Tensor) -> Tensor:
    own = centroids.gather(1, assignment[..., None].expand(-1, -1, points.shape[2]))
    return F.cosine_similarity(points, own, dim=2).mean(1)


def test_separated_directions_are_found() -> None:
    truth = torch.arange(60).repeat(5, 1) % 3
    middles = torch.eye(3, 16)[truth] * torch.linspace(0.5, 20, 60)[:, None]  # length must not matter
    _, assignment = spherical_kmeans(middles + 0.05 * draw(5, 60), 3, torch.linspace(0, 0.99, 5))
    for row in assignment:
        assert sorted(set(zip(row.tolist(), truth[0].tolist()))) == sorted(zip(row[:3].tolist(), [0, 1, 2]))


def test_every_centroid_is_the_mean_of_its_points_once_it_has_converged() -> None:
    points = draw()
    centroids, assignment = spherical_kmeans(points, 3, start(4), iterations=60)
    for p, c, a in zip(F.normalize(points, dim=2), centroids, assignment):
        for k in range(3):
            torch.testing.assert_close(c[k], F.normalize(p[a == k].mean(0), dim=0), rtol=1e-5, atol=1e-6)
        assert torch.equal(a, (p @ c.T).argmax(1))


def test_iterations_never_make_it_worse_and_ten_are_enough() -> None:
    points = draw(32, 49, 256)
    scores = [objective(points, *spherical_kmeans(points, 3, start(32), iterations=n)) for n in (0, 1, 3, 10, 20)]
    for before, after in pairwise(scores):
        assert (after >= before - 1e-6).all()
    torch.testing.assert_close(scores[3].mean(), scores[4].mean(), rtol=0, atol=1e-3)


def test_seeds_are_the_farthest_points() -> None:
    points = F.normalize(draw(1, 20, 8), dim=2)
    seeds, _ = spherical_kmeans(points, 4, torch.tensor([0.5]), iterations=0)
    chosen = [10]  # floor(0.5 * 20)
    while len(chosen) < 4:
        nearest = [max(float(points[0, p] @ points[0, c]) for c in chosen) for p in range(20)]
        chosen.append(nearest.index(min(nearest)))
    torch.testing.assert_close(seeds[0], points[0, chosen])


@pytest.mark.parametrize("u", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_one_cluster_is_the_mean(u: float) -> None:
    points = draw()
    centroids, assignment = spherical_kmeans(points, 1, start(4, u))
    torch.testing.assert_close(centroids[:, 0], F.normalize(F.normalize(points, dim=2).mean(1), dim=1))
    assert not assignment.any()


def test_as_many_clusters_as_points_are_the_points() -> None:
    points = draw()
    centroids, assignment = spherical_kmeans(points, 49, start(4))
    assert all(sorted(row.tolist()) == list(range(49)) for row in assignment)
    torch.testing.assert_close(objective(points, centroids, assignment), torch.ones(4))


def test_more_clusters_than_points_and_empty_clusters_keep_a_unit_centroid() -> None:
    points = draw(2, 3, 8)
    centroids, assignment = spherical_kmeans(points, 5, start(2))
    torch.testing.assert_close(centroids.norm(dim=2), torch.ones(2, 5))
    torch.testing.assert_close(objective(points, centroids, assignment), torch.ones(2))
    same = points[:, :1].expand(-1, 6, -1)  # six times one point: one cluster has it, two are empty and keep their seed
    centroids, assignment = spherical_kmeans(same, 3, start(2))
    assert not assignment.any()
    torch.testing.assert_close(centroids, F.normalize(same[:, :3], dim=2))


def test_points_without_weight_form_no_centroid() -> None:
    points, weight = draw(), torch.ones(4, 49)
    weight[:, 20:] = 0
    masked = torch.where(weight[..., None] > 0, points, 1e3)
    centroids, assignment = spherical_kmeans(masked, 3, start(4, 0.9), weight=weight)
    alone, expected = spherical_kmeans(points[:, :20], 3, start(4, 0.9))
    torch.testing.assert_close(centroids, alone)
    assert torch.equal(assignment[:, :20], expected)


def test_weights_count_as_repeated_points() -> None:
    points = draw(1, 12, 8)
    weight = torch.tensor([[1.0, 2.0, 3.0] * 4])
    repeated = points.repeat_interleave(weight[0].long(), 1)
    twice = spherical_kmeans(repeated, 2, torch.zeros(1))[0]
    torch.testing.assert_close(spherical_kmeans(points, 2, torch.zeros(1), weight=weight)[0], twice)


def test_no_weight_at_all_gives_finite_centroids() -> None:
    centroids, assignment = spherical_kmeans(draw(), 3, start(4, 0.99), weight=torch.zeros(4, 49))
    assert centroids.isfinite().all() and assignment.shape == (4, 49)


def test_same_inputs_give_the_same_clusters_alone_or_in_a_batch() -> None:
    points, first = draw(8), torch.rand(8, generator=torch.Generator().manual_seed(1))
    centroids, assignment = spherical_kmeans(points, 5, first)
    again = spherical_kmeans(points.clone(), 5, first)
    assert torch.equal(centroids, again[0]) and torch.equal(assignment, again[1])
    for i in range(8):
        alone = spherical_kmeans(points[i : i + 1], 5, first[i : i + 1])
        torch.testing.assert_close(alone[0][0], centroids[i])
        assert torch.equal(alone[1][0], assignment[i])


def test_it_starts_where_first_says() -> None:
    seeds = [spherical_kmeans(draw(1), 1, torch.tensor([u]), iterations=0)[0] for u in (0.0, 0.99)]
    torch.testing.assert_close(seeds[0][0], F.normalize(draw(1)[:, 0], dim=1))
    torch.testing.assert_close(seeds[1][0], F.normalize(draw(1)[:, 48], dim=1))


def test_float32_without_gradient_under_autocast() -> None:
    points = draw().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        centroids, assignment = spherical_kmeans(points, 3, start(4))
    assert centroids.dtype == torch.float32 and not centroids.requires_grad
    plain = spherical_kmeans(draw(), 3, start(4))
    assert torch.equal(centroids, plain[0]) and torch.equal(assignment, plain[1])
    assert spherical_kmeans(draw().bfloat16(), 3, start(4))[0].dtype == torch.float32
