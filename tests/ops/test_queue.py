"""The queue of keys: order, wrapping, two ranks, sizes that are refused."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.ops import Queue, check_queue, info_nce_queue
from twinview.values import Dims, EncoderSpec, Level

TwoRanks = Callable[[Callable[[int], Any]], list[Any]]
DIMS = Dims(encoder=EncoderSpec(pooled=8, cells=Level(8, 8)), grids=((4, 4),), sizes=((32, 32),), pairs=(), global_batch=32, dataset_size=367)


def keys(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def queue(size: int) -> Queue:
    torch.manual_seed(0)
    return Queue(size, 4)


def test_it_starts_with_unit_vectors_and_the_newest_take_the_place_of_the_oldest() -> None:
    found = queue(6)
    torch.testing.assert_close(found.negatives().norm(dim=1), torch.ones(6))
    before = found.negatives()
    found.push(keys(4))
    torch.testing.assert_close(found.keys, torch.cat([F.normalize(keys(4), dim=1), before[4:]]))
    found.push(keys(4, 1))  # wraps
    torch.testing.assert_close(found.keys, torch.cat([F.normalize(keys(4, 1), dim=1)[2:], F.normalize(keys(4), dim=1)[2:], F.normalize(keys(4, 1), dim=1)[:2]]))
    assert int(found.place) == 2


def test_a_push_between_a_loss_and_its_backward_pass_changes_no_gradient() -> None:
    gradients = []
    for early in (False, True):
        found, query = queue(6), keys(3, 2).requires_grad_()
        loss = info_nce_queue(query, keys(3, 3), found.negatives(), 0.2).mean()
        if early:
            found.push(keys(3, 3))
        loss.backward()  # type: ignore[no-untyped-call]
        assert query.grad is not None
        gradients.append(query.grad)
    assert torch.equal(*gradients)


def test_it_is_all_buffers_and_goes_through_a_checkpoint() -> None:
    found, other = queue(6), Queue(6, 4)
    found.push(keys(4))
    assert not list(found.parameters())
    other.load_state_dict(found.state_dict())
    found.push(keys(4, 1))
    other.push(keys(4, 1))
    assert torch.equal(found.keys, other.keys) and torch.equal(found.place, other.place)


def test_micro_batches_are_held_until_the_step_is_taken() -> None:
    whole, parts = queue(8), queue(8)
    whole.push(keys(6))
    before = parts.negatives()
    parts.hold(keys(6, 5), 0)  # of a step that was left out
    for micro in range(3):
        parts.hold(keys(6)[2 * micro :][:2], micro)
        assert torch.equal(parts.keys, before)
    parts.commit()
    assert torch.equal(parts.keys, whole.keys) and torch.equal(parts.place, whole.place)


def pushed_on_a_rank(rank: int) -> dict[str, Tensor]:
    found = queue(8)
    for seed in (0, 1):
        found.push(keys(6, seed)[3 * rank :][:3])
    return dict(found.state_dict())


def test_two_ranks_hold_the_queue_of_one_process(two_ranks: TwoRanks) -> None:
    alone = queue(8)
    for seed in (0, 1):
        alone.push(keys(6, seed))
    for found in two_ranks(pushed_on_a_rank):
        assert torch.equal(found["keys"], alone.keys) and torch.equal(found["place"], alone.place)


@pytest.mark.parametrize(
    ("size", "images", "said"),
    [
        (65536, 367, "[[loss]] moco.image: queue = 65536 is more than the 367 images, which would meet their own keys as negatives. Write queue = 352."),
        (65536, 20, "Lower run.batch_size."),
        (16, 367, "queue = 16 does not hold the 32 keys of one batch. Write a multiple of 32."),
    ],
)
def test_a_queue_that_does_not_fit_is_refused_with_what_to_write(size: int, images: int, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_queue(size, attrs.evolve(DIMS, dataset_size=images), "[[loss]] moco.image")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_queue_that_fits_passes_and_one_batch_too_many_is_an_error_of_the_caller() -> None:
    check_queue(352, DIMS, "[[loss]] moco.image")
    with pytest.raises(ValueError, match="9 keys at once do not fit a queue of 8"):
        queue(8).push(keys(9))
