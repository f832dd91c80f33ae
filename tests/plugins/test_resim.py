"""ReSim against tensors of the official code: windows, precise pooling, the pyramid, and the loss on one and two ranks."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twinview.ops import precise_roi_mean
from twinview.values import Features, Geometry
from twinview_resim import Crops, Windows
from twinview_resim.pyramid import Pyramid
from twinview_resim.windows import carry, in_cells, slide

TwoRanks = Callable[[Callable[[int], Any]], list[Any]]
SOURCE = (375, 500)  # height, width: any that holds the boxes


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and float((found.detach() - expected).abs().max()) < tolerance


# ---- precise pooling
def check_pooling(case: dict[str, Tensor]) -> None:
    maps = case["features"].clone().requires_grad_()
    rois = case["rois_px"]
    for image in range(len(maps)):
        own = rois[:, 0] == image
        found = precise_roi_mean(maps[image : image + 1], rois[own, 1:][None] * float(case["scale"]))[0]
        assert near(found, case["pooled"][own, :, 0, 0])
        (found * case["upstream"][own, :, 0, 0]).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None and near(maps.grad, case["grad_features"])


def test_precise_pooling(reference_slice: Any) -> None:
    check_pooling(reference_slice("resim")["prroi"])


def test_precise_pooling_is_the_mean_of_the_interpolant() -> None:
    maps = torch.randn(1, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[[0.3, 1.2, 3.7, 2.9]]], dtype=torch.float64)
    n = 400
    y, x = (1.2 + 1.7 * (torch.arange(n, dtype=torch.float64) + 0.5) / n), (0.3 + 3.4 * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    grid = torch.stack([x / 5 * 2 - 1, (y / 4 * 2 - 1)], -1)
    points = torch.stack([grid[None, :, 0].expand(n, -1), grid[:, None, 1].expand(-1, n)], -1)[None]
    fine = nn.functional.grid_sample(maps, points, mode="bilinear", align_corners=True).mean((2, 3))
    assert near(precise_roi_mean(maps, box)[0], fine, 1e-4)


def test_a_box_without_area_gives_nothing() -> None:
    found = precise_roi_mean(torch.ones(1, 1, 4, 4), torch.tensor([[[1.0, 1.0, 1.0, 3.0]]]))
    assert float(found) == 0


# ---- the pyramid
def check_pyramid(case: dict[str, Any]) -> None:
    state, levels = case["state"], [case[name].clone().requires_grad_() for name in ("c5", "c4", "c3")]
    pyramid = Pyramid([10, 8, 6], 5).double()
    names = {"lateral.0": "fpn_lateral5", "lateral.1": "fpn_lateral4", "lateral.2": "fpn_lateral3", "output.0": "fpn_output4", "output.1": "fpn_output3"}
    pyramid.load_state_dict({f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in ("weight", "bias")})
    p4, p3 = pyramid(levels)
    assert near(p4, case["p4"]) and near(p3, case["p3"])
    pooled = nn.functional.relu(levels[0].mean((2, 3)) @ state["fc.0.weight"].mT + state["fc.0.bias"]) @ state["fc.2.weight"].mT + state["fc.2.bias"]
    assert near(pooled, case["out5"])
    sum((x * case["upstream"][name]).sum() for x, name in ((p4, "p4"), (p3, "p3"), (pooled, "out5"))).backward()
    for level, name in zip(levels, ("c5", "c4", "c3")):
        assert level.grad is not None and near(level.grad, case[f"grad_{name}"])


def test_the_pyramid(reference_slice: Any) -> None:
    check_pyramid(reference_slice("resim")["fpn"])


# ---- windows and loss
def places(case: dict[str, Tensor]) -> Geometry:
    top, left, height, width = case["boxes_top_left_h_w"].double().unbind(-1)
    boxes = torch.stack([left / SOURCE[1], top / SOURCE[0], (left + width) / SOURCE[1], (top + height) / SOURCE[0]], -1)
    flips = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    return Geometry(boxes, flips, torch.tensor(SOURCE).expand(len(boxes), 2), ((224, 224),) * 2, ((0, 1),))


def check_windows(case: dict[str, Tensor]) -> None:
    for which, (name, number) in enumerate((("c4", 36), ("c3", 64))):
        windows = slide((224, 224), Windows().side[which], Windows().stride[which])
        there, valid = carry(places(case), 0, 1, windows)
        assert len(windows) == number and torch.equal(valid, case[f"labels_{name}"] == 0)
        assert near(windows.expand(len(valid), -1, -1), case[f"anchors_q_{name}"])
        assert near(there, case[f"anchors_k_{name}"], 1e-10)


def test_windows(reference_slice: Any) -> None:
    check_windows(reference_slice("resim")["one_rank"])


class Given(nn.Module):
    """In place of the pyramid: the levels are its maps already."""

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return levels[1:]


def loss(hand_step: Any, case: dict[str, Tensor], maps: list[Tensor]) -> tuple[Tensor, Any]:
    query = Features(levels={"c5": maps[0], "c4": maps[0], "c3": maps[1]})
    key = Features(levels={"c5": case["p4_k"], "c4": case["p4_k"], "c3": case["p3_k"]})
    step = hand_step([query, Features()], [Features(), key], {"pyramid": Given()}, {"pyramid": Given()}, ((0, 1),), places(case))
    return Windows().loss(step)["windows"], step


def check_loss(hand_step: Any, case: dict[str, Tensor]) -> None:
    maps = [case["p4_q"].clone().requires_grad_(), case["p3_q"].clone().requires_grad_()]
    found, _ = loss(hand_step, case, maps)
    assert near(found, case["loss_c4"] + case["loss_c3"])
    found.backward()  # type: ignore[no-untyped-call]
    for m, name in zip(maps, ("grad_p4_q", "grad_p3_q")):
        assert m.grad is not None and near(m.grad, case[name])
    windows = slide((224, 224), 48, 32).expand(len(maps[0]), -1, -1)
    pooled = precise_roi_mean(maps[0], in_cells(windows, (224, 224), maps[0])).flatten(0, 1)
    assert near(pooled, case["roi_q_c4"])


def test_the_whole_file(reference_file: Any, hand_step: Any) -> None:
    case = reference_file("resim")
    check_pooling(case["prroi"])
    check_pyramid(case["fpn"])
    check_windows(case["one_rank"])
    check_loss(hand_step, case["one_rank"])


def on_rank(rank: int) -> Any:
    """The loss on one of two ranks, and its gradient."""
    spec = importlib.util.spec_from_file_location("hand", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hand)
    case = torch.load(Path(__file__).parent / "fixtures" / "baselines" / "resim.pt", weights_only=True)["two_ranks"][f"rank{rank}"]
    maps = [case["p4_q"].clone().requires_grad_(), case["p3_q"].clone().requires_grad_()]
    found, _ = loss(hand.HandStep, case, maps)
    found.backward()  # type: ignore[no-untyped-call]
    return {"loss": found.detach(), "grads": [m.grad for m in maps]}


def test_two_ranks(two_ranks: TwoRanks, reference_slice: Any) -> None:
    for rank, found in enumerate(two_ranks(on_rank)):
        case = reference_slice("resim")["two_ranks"][f"rank{rank}"]
        assert near(found["loss"], case["loss_c4"] + case["loss_c3"])
        assert near(found["grads"][0], case["grad_p4_q"]) and near(found["grads"][1], case["grad_p3_q"])


# ---- views of other methods
def test_both_views_are_mirrored_or_neither() -> None:
    rng = np.random.default_rng(0)
    flips = [Crops(size=32).sample_views((90, 120), rng).flips.tolist() for _ in range(40)]
    assert all(a == b for a, b in flips) and 8 < sum(a for a, _ in flips) < 32


@pytest.mark.parametrize("flips", [(False, True), (True, False), (True, True)])
def test_windows_are_carried_between_views_that_are_mirrored_by_themselves(flips: tuple[bool, bool]) -> None:
    geometry = Geometry(torch.tensor([[[0.1, 0.1, 0.8, 0.9], [0.0, 0.0, 1.0, 1.0]]]), torch.tensor([flips]), torch.tensor([[100.0, 100.0]]), ((64, 64), (96, 96)), ((0, 1),))
    windows = slide((64, 64), 16, 12)
    there, valid = carry(geometry, 0, 1, windows)
    assert bool(valid.all()) and bool((there[..., 2:] > there[..., :2]).all())
    back, again = carry(geometry, 1, 0, there[0])
    assert bool(again.any()) and near(back[again], windows.double()[again[0]], 1e-4)


def test_windows_that_the_online_branch_did_not_see_count_for_nothing(hand_step: Any, reference_slice: Any) -> None:
    case = reference_slice("resim")["two_ranks"]["rank0"]
    maps = [case["p4_q"].clone().requires_grad_(), case["p3_q"].clone().requires_grad_()]
    query = Features(cells=maps[0], levels={"c5": maps[0], "c4": maps[0], "c3": maps[1]})
    key = Features(levels={"c5": case["p4_k"], "c4": case["p4_k"], "c3": case["p3_k"]})
    step = hand_step([query, Features()], [Features(), key], {"pyramid": Given()}, {"pyramid": Given()}, ((0, 1),), places(case))
    hidden = torch.zeros(len(maps[0]), 14, 14, dtype=torch.bool)
    hidden[:, :7] = True
    step.hidden = (hidden.flatten(1), None)
    Windows().loss(step)["windows"].backward()  # type: ignore[no-untyped-call]
    assert maps[0].grad is not None and maps[0].grad[:, :, :3].abs().max() == 0 and maps[0].grad[:, :, 9:].abs().max() > 0
