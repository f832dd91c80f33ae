"""DenseCL against tensors of the official code, and its alignment by resemblance."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.ops import Queue, conv_mlp, info_nce_queue, mlp
from twinview.values import Dims, EncoderSpec, Features, Level, Progress
from twinview_densecl import Correspondence, Dense

TwoRanks = Callable[[Callable[[int], Any]], list[Any]]


class Back(nn.Module):
    """The encoder that the reference was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Side:
    """One branch: encoder, image head, dense head, in float64 and with the reference's weights."""

    def __init__(self, state: dict[str, Tensor], name: str) -> None:
        self.modules: dict[str, nn.Module] = {f"{name}.0": Back(), f"{name}.1.mlp": mlp(16, 24, 8, norm=False), f"{name}.1.mlp2": conv_mlp(16, 24, 8, norm=False)}
        self.back, self.image, self.dense = self.modules.values()
        self.load(state)

    def load(self, state: dict[str, Tensor]) -> None:
        for prefix, module in self.modules.items():
            module.double().load_state_dict({k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")})

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{prefix}.{k}": p for prefix, module in self.modules.items() for k, p in module.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        return {f"{prefix}.{k}": v for prefix, module in self.modules.items() for k, v in module.state_dict().items()}


def queue(columns: Tensor, place: Tensor) -> Queue:
    found = Queue(columns.shape[1], columns.shape[0]).double()
    found.keys.copy_(columns.mT)
    found.place.copy_(place[0])
    return found


def dense_step(hand_step: Any, online: Tensor, target: Tensor, head: nn.Module, averaged: nn.Module, keys: Queue) -> tuple[Tensor, Any]:
    align = Correspondence()
    step = hand_step([Features(cells=online), Features()], [Features(), Features(cells=target)], {"projector": head, "queue": keys}, {"projector": averaged, "queue": keys},
                     ((0, 1),), alignment=lambda step, i, j: align.align(step, i, j))
    part = Dense(channels=8, queue=32)
    loss = part.loss(step)["dense"]
    part.after_micro_batch(step.branches, step, step.progress)
    part.after_step(step.branches)
    return loss, step


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and float((found.detach().double() - expected.double()).abs().max()) < tolerance


def check_steps(case: dict[str, Any], hand_step: Any) -> None:
    online, target = (Side(case["state_before"], name) for name in ("encoder_q", "encoder_k"))
    image_keys, dense_keys = (queue(case["state_before"][name], case["state_before"][f"{name}_ptr"]) for name in ("queue", "queue2"))
    parameters = online.parameters()
    optimizer = torch.optim.SGD(parameters.values(), 0.03, momentum=0.9, weight_decay=1e-4)
    for number, step in enumerate(case["steps"]):
        with torch.no_grad():
            for o, t in zip(parameters.values(), target.parameters().values()):
                t.mul_(0.99).add_(o, alpha=0.01)
            keys = target.back(step["img"][:, 1])
        maps = online.back(step["img"][:, 0])
        maps.retain_grad()
        dense, made = dense_step(hand_step, maps, keys, online.dense, target.dense, dense_keys)
        with torch.no_grad():
            key = target.image(keys.mean((2, 3)))
        image = info_nce_queue(online.image(maps.mean((2, 3))), key, image_keys.negatives(), 0.2).mean()
        image_keys.push(key)
        optimizer.zero_grad()
        loss = 0.5 * image + 0.5 * dense
        loss.backward()  # type: ignore[no-untyped-call]
        assert near(dense, step["loss_dense_raw"]) and near(image, step["loss_single_raw"]) and near(loss, step["loss"])
        assert torch.equal(match_of(made), step["match"])
        assert near(dense_keys.keys.mT, step["queue2_after"]) and near(image_keys.keys.mT, step["queue_after"])
        if number == 0:
            assert maps.grad is not None and near(maps.grad, step["grad_f_q"])
            for name, parameter in parameters.items():
                assert parameter.grad is not None and near(parameter.grad, step["grads"][name]), name
            for name, value in (online.state() | target.state()).items():
                assert near(value, step["state_after_forward"][name]), name
        optimizer.step()
    for name, value in (online.state() | target.state()).items() if "state_final" in case else ():
        assert near(value, case["state_final"][name]), name


def match_of(step: Any) -> Tensor:
    """Which cell of the target each online cell met: a map of numbers goes through the alignment."""
    cells = step.target[1].at("cells")
    numbers = torch.arange(cells.shape[2] * cells.shape[3], dtype=torch.float64).view(1, 1, *cells.shape[2:]).expand(len(cells), -1, -1, -1)
    return step.alignment(0, 1).target(numbers).flatten(1).long()  # type: ignore[no-any-return]


def test_steps_of_the_release(reference_slice: Any, hand_step: Any) -> None:
    check_steps(reference_slice("densecl")["one_rank"], hand_step)


def test_steps_of_the_whole_file(reference_file: Any, hand_step: Any) -> None:
    check_steps(reference_file("densecl")["one_rank"], hand_step)


def on_rank(rank: int) -> Any:
    """The dense half of the reference's first step on one of two ranks, from its stored maps on."""
    spec = importlib.util.spec_from_file_location("hand", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hand)
    case = torch.load(Path(__file__).parent / "fixtures" / "baselines" / "densecl.pt", weights_only=True)["two_ranks"]
    mine = case[f"rank{rank}"]
    online, target = (Side(mine["state_before"], name) for name in ("encoder_q", "encoder_k"))
    keys = queue(mine["state_before"]["queue2"], mine["state_before"]["queue2_ptr"])
    with torch.no_grad():
        for o, t in zip(online.parameters().values(), target.parameters().values()):
            t.mul_(0.99).add_(o, alpha=0.01)
    shuffled = torch.cat([case[f"rank{r}"]["f_k_shuffled"] for r in (0, 1)])
    back = torch.empty_like(shuffled)
    back[mine["idx_shuffle"]] = shuffled
    maps = mine["f_q"].clone().requires_grad_()
    n = len(maps)
    loss, _ = dense_step(hand.HandStep, maps, back[rank * n : (rank + 1) * n], online.dense, target.dense, keys)
    return {"loss": loss.detach(), "queue": keys.keys.mT.contiguous(), "place": keys.place}


def test_two_ranks_of_the_release(two_ranks: TwoRanks, reference_slice: Any) -> None:
    for rank, found in enumerate(two_ranks(on_rank)):
        expected = reference_slice("densecl")["two_ranks"][f"rank{rank}"]
        assert near(found["loss"], expected["loss_dense_raw"])
        assert near(found["queue"], expected["queue2_after"]) and int(found["place"]) == int(expected["queue2_ptr_after"])


# ---- the alignment
def aligned(hand_step: Any, online: Tensor, target: Tensor) -> Any:
    step = hand_step([Features(cells=online)], [Features(), Features(cells=target)], {}, {}, ((0, 1),))
    return Correspondence().align(step, 0, 1), step


def test_a_shuffled_map_is_put_back(hand_step: Any) -> None:
    online = torch.randn(2, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    target = 3 * online.flatten(2)[:, :, order].view(2, 16, 3, 4)
    found, step = aligned(hand_step, online, target)
    assert torch.equal(found.target(target), 3 * online) and torch.equal(found.online(online), online) and bool((found.weight == 1).all())
    assert torch.equal(step.notes["correspondence/used"], torch.ones(2))


def test_maps_of_other_sizes_and_widths_follow_the_same_choice(hand_step: Any) -> None:
    online, target = torch.randn(1, 8, 2, 2), torch.randn(1, 8, 4, 4)
    found, _ = aligned(hand_step, online, target)
    assert found.online(torch.randn(1, 3, 4, 4)).shape == (1, 3, 2, 2) and found.target(torch.randn(1, 5, 8, 8)).shape == (1, 5, 2, 2)


def test_all_may_meet_one(hand_step: Any) -> None:
    target = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    found, step = aligned(hand_step, target[:, :, :1, :1].expand(-1, -1, 2, 2), target)
    assert torch.equal(found.target(target), target[:, :, :1, :1].expand(-1, -1, 2, 2)) and float(step.notes["correspondence/used"]) == 0.25


def test_the_queue_takes_one_cell_of_each_image_where_asked(hand_step: Any) -> None:
    maps, keys = torch.randn(2, 8, 2, 3, generator=torch.Generator().manual_seed(0)), Queue(4, 8)
    heads = {"projector": nn.Identity(), "queue": keys}
    step = hand_step([Features(cells=maps), Features()], [Features(), Features(cells=maps)], heads, heads, ((0, 1),))
    step.batch = SimpleNamespace(seeds=torch.tensor([3, -1]))
    part = Dense(channels=8, queue=4, keys="cell")
    for number in range(2):
        part.after_micro_batch(step.branches, step, Progress(number, 10, 0, 0.0))
        part.after_step(step.branches)
    cells = F.normalize(maps, dim=1).flatten(2)
    expected = [cells[0, :, 3], cells[1, :, 5], cells[0, :, 4], cells[1, :, 0]]
    assert near(keys.keys, torch.stack(expected), 1e-6)


def test_a_queue_larger_than_the_data_set_is_refused() -> None:
    dims = Dims(encoder=EncoderSpec(pooled=8, cells=Level(8, 8)), grids=((4, 4),) * 2, sizes=((32, 32),) * 2, pairs=((0, 1),), global_batch=32, dataset_size=367)
    with pytest.raises(RecipeError, match=r"densecl.dense: queue = 65536 .*Write queue = 352"):
        Dense().check(dims)
