"""InfoNCE in its forms: by hand, against torch's cross-entropy, and over two ranks against one process."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops import info_nce, info_nce_batch, info_nce_queue, nt_xent

T = 0.2
TwoRanks = Callable[[Callable[[int], Any]], list[Any]]


def rows(n: int, channels: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_info_nce_by_hand() -> None:
    query, key = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for b in range(2):
        found = []
        for k in range(3):
            similar = [float(F.cosine_similarity(query[b, k], key[b, j], dim=0)) / 0.2 for j in range(3)]
            found.append(-similar[k] + math.log(sum(math.exp(s) for s in similar)))
        assert float(info_nce(query, key, 0.2)[b]) == pytest.approx(sum(found) / 3, rel=1e-5)
    same = torch.eye(4)[None]
    assert float(info_nce(same, same, 0.01)) == pytest.approx(0, abs=1e-6) and float(info_nce(torch.ones(1, 4, 2), torch.ones(1, 4, 2), 1.0)) == pytest.approx(math.log(4))


def test_a_row_against_a_queue_knows_its_own_key_and_the_negatives_alone() -> None:
    query, key, negatives = rows(4), rows(4, seed=1), F.normalize(rows(9, seed=2), dim=1)
    found = info_nce_queue(query, key, negatives, T)
    for i in range(4):
        similar = [float(F.cosine_similarity(query[i], other, dim=0)) / T for other in (key[i], *negatives)]
        assert float(found[i]) == pytest.approx(-similar[0] + math.log(sum(map(math.exp, similar))), rel=1e-12)
    assert torch.allclose(info_nce_queue(3 * query[:1], 0.1 * key[:1], negatives, T), found[:1])  # lengths do not count


def test_gradient_against_a_queue_is_the_softmaxs() -> None:
    q, k, negatives = F.normalize(rows(4), dim=1), F.normalize(rows(4, seed=1), dim=1), F.normalize(rows(9, seed=2), dim=1)
    query = q.clone().requires_grad_()
    info_nce_queue(query, k, negatives, T).sum().backward()  # type: ignore[no-untyped-call]
    every = torch.stack([torch.cat([k[i : i + 1], negatives]) for i in range(4)])  # [4, 10, C]
    share = ((every @ q[..., None])[..., 0] / T).softmax(1)
    share[:, 0] -= 1
    along = (share[..., None] * every).sum(1) / T
    assert query.grad is not None and torch.allclose(query.grad, along - (along * q).sum(1, keepdim=True) * q)


def test_in_a_batch_the_other_images_keys_are_the_negatives() -> None:
    query, key = rows(5), rows(5, seed=1)
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / T
    assert torch.allclose(info_nce_batch(query, key, T), F.cross_entropy(logits, torch.arange(5), reduction="none"))
    assert torch.allclose(info_nce_batch(query, key, T).mean(), info_nce(query[None], key[None], T)[0])


def test_nt_xent_leaves_a_row_itself_out_and_nothing_else() -> None:
    a, b = rows(4), rows(4, seed=1)
    found = nt_xent(a, b, T)
    z = torch.cat([a, b])
    for i in range(8):
        positive = (i + 4) % 8
        similar = [float(F.cosine_similarity(z[i], z[j], dim=0)) / T for j in range(8) if j != i]
        own = float(F.cosine_similarity(z[i], z[positive], dim=0)) / T
        assert float(found[i]) == pytest.approx(-own + math.log(sum(map(math.exp, similar))), rel=1e-12)


def test_low_precision_is_reckoned_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        a, b = rows(4).bfloat16(), rows(4, seed=1).bfloat16()
        negatives = F.normalize(rows(6).float(), dim=1)
        for found in (nt_xent(a, b, T), info_nce_batch(a, b, T), info_nce_queue(a, b, negatives, T), info_nce(a[None], b[None], T)):
            assert found.dtype == torch.float32 and bool(found.isfinite().all())


# ---- two ranks: rank 0 holds three images, rank 1 two
SHARE = (slice(0, 3), slice(3, 5))


def losses(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"nt_xent": nt_xent(a, b, T), "batch": info_nce_batch(a, b, T)}


def on_a_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    """Each loss, summed: the gradients of the sum over ranks are those of one process that sums over all."""
    found = {}
    for name in ("nt_xent", "batch"):
        a, b = (rows(5, seed=seed)[SHARE[rank]].requires_grad_() for seed in (0, 1))
        loss = losses(a, b)[name]
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert a.grad is not None and b.grad is not None
        found[name] = {"loss": loss.detach(), "a": a.grad, "b": b.grad}
    return found


def test_two_ranks_have_the_losses_and_gradients_of_one_process(two_ranks: TwoRanks) -> None:
    found = two_ranks(on_a_rank)
    for name in ("nt_xent", "batch"):
        a, b = (rows(5, seed=seed).requires_grad_() for seed in (0, 1))
        alone = losses(a, b)[name]
        alone.sum().backward()  # type: ignore[no-untyped-call]
        for rank, share in enumerate(SHARE):
            own = torch.cat([half[share] for half in torch.split(alone.detach(), 5)])
            torch.testing.assert_close(found[rank][name]["loss"], own, rtol=1e-13, atol=1e-13)
            for key, x in (("a", a), ("b", b)):
                assert x.grad is not None
                torch.testing.assert_close(found[rank][name][key], x.grad[share], rtol=1e-13, atol=1e-13)
