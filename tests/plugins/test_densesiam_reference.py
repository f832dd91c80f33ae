"""Agreement with tensors made by the official code: committed slices, and the whole files where they are at hand.

A slice keeps whole cells, points or images; gradients of a mean are scaled to the slice's own number of cells.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.ops import cosine_loss, info_nce, mlp, soft_cross_entropy, soft_cross_entropy_loss
from twinview.ops.cross_entropy import balanced_weights
from twinview.values import Features, Geometry, Progress
from twinview_densesiam import Region
from twinview_densesiam.align import replayed, replayed_places, sample_map
from twinview_densesiam.region import region_sums
from twinview_densesiam.segment import segment_loss

SLICES = Path(__file__).parent / "fixtures" / "densesiam" / "slices.pt"


@pytest.fixture(scope="module")
def slices() -> Any:
    return torch.load(SLICES, weights_only=True)


def whole(shared: Path, name: str) -> Any:
    return torch.load(shared / "reference" / "densesiam" / f"{name}.pt", weights_only=True)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and float((found - expected).detach().abs().max()) <= tolerance


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


# ---- pixel loss
def check_pixel(case: dict[str, Tensor]) -> Tensor:
    z1, z2, p1, p2 = leaves(*(case[name] for name in ("z1", "z2", "p1", "p2")))
    assert close(soft_cross_entropy(p1, z2), case["map12"], 1e-10) and close(soft_cross_entropy(p2, z1), case["map21"], 1e-10)
    loss = (soft_cross_entropy_loss(p1, z2) + soft_cross_entropy_loss(p2, z1)) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    assert p1.grad is not None and p2.grad is not None and z1.grad is None and z2.grad is None
    assert close(p1.grad, case["grad_p1"], 1e-14) and close(p2.grad, case["grad_p2"], 1e-14)
    return loss.detach()


@pytest.mark.parametrize("head", ["main", "aux"])
def test_pixel_loss(slices: Any, head: str) -> None:
    check_pixel(slices[f"pixel_{head}"])


@pytest.mark.parametrize("head", ["main", "aux"])
def test_pixel_loss_of_the_whole_file(shared: Path, head: str) -> None:
    case = whole(shared, "pixel_loss")[head]
    loss = check_pixel(case["inputs"] | case["outputs"])
    assert abs(float(loss - case["outputs"]["loss"])) < 1e-10


def test_balanced_weights(slices: Any) -> None:
    main, auxiliary = balanced_weights(27, 128)
    assert abs(main - slices["weights"]["simsiam"]) < 1e-12 and abs(auxiliary - slices["weights"]["aux"]) < 1e-12


def check_cosine(case: dict[str, Tensor]) -> Tensor:
    p1, p2 = leaves(*(case[name].flatten(0, -2) for name in ("p1", "p2")))
    loss = (cosine_loss(p1, case["z2"].flatten(0, -2)) + cosine_loss(p2, case["z1"].flatten(0, -2))) / 2
    loss.backward()  # type: ignore[no-untyped-call]
    for p, name in ((p1, "grad_p1"), (p2, "grad_p2")):
        assert p.grad is not None and close(p.grad, case[name].flatten(0, -2), 1e-14)
    return loss.detach()


def test_cosine(slices: Any) -> None:
    check_cosine(slices["cosine"])


def test_cosine_of_the_whole_file(shared: Path) -> None:
    case = whole(shared, "simsiam_cosine")
    loss = check_cosine(case["inputs"] | case["outputs"])
    assert abs(float(loss - case["outputs"]["loss"])) < 1e-10


# ---- segmentation loss
@pytest.mark.parametrize(("rebalance", "name"), [("none", "plain"), ("frequency", "rebalance")])
def test_segment_loss(slices: Any, rebalance: str, name: str) -> None:
    expected, losses = slices["seg"][name], []
    logits = leaves(slices["seg"]["inputs"]["z1"], slices["seg"]["inputs"]["z2"])
    for z, counts in zip(logits, slices["seg"]["counts"]):
        loss, found = segment_loss(z, z.new_ones(2, 12, 12), rebalance)
        assert torch.equal(found.long(), counts)
        losses.append(loss)
    total = torch.stack(losses).mean()
    total.backward()  # type: ignore[no-untyped-call]
    assert abs(float(total - expected["loss"])) < 4e-7
    for z, view in zip(logits, ("1", "2")):
        assert z.grad is not None and close(z.grad, expected[f"grad_z{view}"], 1e-8)
        assert abs(float(losses[int(view) - 1] - expected[f"map{view}"].mean())) < 4e-7


# ---- region loss
def test_region_sums_and_contrast(slices: Any) -> None:
    case = slices["region"]
    assert close(region_sums(case["feats"], case["z"], torch.ones(1, 10, 10)), case["sums"], 1e-10)
    both = [info_nce(case[f"pred{a}"], case[f"proj{b}"], 0.1).mean() for a, b in ((1, 2), (2, 1))]
    assert abs(0.1 * float(sum(both)) / 2 - float(case["loss"])) < 1e-10


class TwoViews:
    """As much of a step as the region loss asks for: two aligned views, masks from outside, one projector and predictor."""

    def __init__(self, features: list[Tensor], masks: list[Tensor], heads: dict[str, nn.Module], share: float) -> None:
        self.pairs, self.hidden, self.progress = ((0, 1), (1, 0)), (None, None), Progress(0, 10, 0, share)
        self.online = [Features(cells=f) for f in features]
        self.masks = masks
        branch = type("B", (), {"of": lambda self, part, name: heads[name]})()
        self.branches = type("Bs", (), {"online": branch, "target": branch})()
        self.notes: dict[str, Tensor] = {}

    def alignment(self, online: int, target: int, name: str) -> Any:
        return type("A", (), {"online": staticmethod(lambda m: m), "target": staticmethod(lambda m: m), "weight": torch.ones(3, 10, 10)})

    def head(self, part: object, name: str) -> str:
        return name

    def apply(self, heads: str, view: int, role: str) -> Tensor:
        assert heads == "masks" and role == "online"
        return self.masks[view]

    def note(self, name: str, value: Tensor) -> None:
        self.notes[name] = value


def region_heads(state: dict[str, Tensor]) -> dict[str, nn.Module]:
    heads = {"projector": mlp(128, 128, 128, layers=3, last_norm=True), "predictor": mlp(128, 128, 128)}
    for name, head in heads.items():
        prefix = f"kernel_{name}."
        head.double().load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return {k: v for k, v in heads.items()}


def test_region_loss_of_the_whole_file(shared: Path) -> None:
    case = whole(shared, "region_loss")
    inputs, outputs = case["inputs"], case["outputs"]
    features, masks = leaves(inputs["feats_v1"], inputs["feats_v2"]), leaves(inputs["z1"], inputs["z2"])
    heads = region_heads(case["heads_before"])
    step: Any = TwoViews(features, masks, heads, 1.0)
    loss = case["weight"] * Region(temperature=case["temperature"]).loss(step)["region"]
    loss.backward()
    assert abs(float(loss - outputs["loss"])) < 1e-10
    for view in (0, 1):
        for found, name in ((features[view], f"grad_feats_v{view + 1}"), (masks[view], f"grad_z{view + 1}")):
            assert found.grad is not None and close(found.grad, outputs[name], 1e-12)
    for name, head in heads.items():
        for key, parameter in head.named_parameters():
            assert parameter.grad is not None and close(parameter.grad, outputs["grad_heads"][f"kernel_{name}.{key}"], 1e-10)
        for key, value in head.state_dict().items():
            assert close(value.double(), case["heads_after"][f"kernel_{name}.{key}"].double(), 1e-10), key


def test_region_weight_by_epoch(slices: Any) -> None:
    heads = region_heads({k: v for name in ("projector", "predictor") for k, v in fresh(f"kernel_{name}").items()})
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, channels, 10, 10, generator=generator, dtype=torch.float64) for channels in (128, 128, 27, 27)]
    for epoch, weight in enumerate(slices["schedule"]):
        step: Any = TwoViews(tensors[:2], tensors[2:], heads, epoch / len(slices["schedule"]))
        found = float(0.1 * Region(start=0.8).loss(step)["region"])
        assert found == pytest.approx(weight * float(step.notes["region/raw"])) and (found > 0) == (weight > 0)


def fresh(prefix: str) -> dict[str, Tensor]:
    net = mlp(128, 128, 128, layers=3, last_norm=True) if prefix.endswith("projector") else mlp(128, 128, 128)
    return {f"{prefix}.{k}": v.double() if v.is_floating_point() else v for k, v in net.state_dict().items()}


# ---- the released crops
def draws(case: dict[str, Tensor], flips: Tensor) -> Geometry:
    idx = case["idx"]
    notes = {"crop_scale": case["rscale"][idx], "crop_row": case["rcrop"][idx, 0], "crop_column": case["rcrop"][idx, 1]}
    return Geometry(torch.zeros(len(idx), 2, 4), torch.stack([flips, torch.zeros_like(flips)], 1), torch.zeros(len(idx), 2), (), (), notes)


def test_replayed_crops_read_the_released_places(slices: Any) -> None:
    case = slices["overlap"]
    geometry = draws(case, case["flipped"])
    length = (geometry.notes["crop_scale"].double() * 80).floor()
    assert torch.equal(length.long(), case["boxes_row_col_side"][:, 1, 2])
    ramp = (torch.arange(80, dtype=torch.float64) + 0.5) / 80
    maps = torch.stack([ramp.expand(80, 80), ramp[:, None].expand(80, 80)]).expand(6, -1, -1, -1)
    found = replayed(maps, geometry, (80, 80))
    assert close(found[:, 0, 0], case["view2_x"], 1e-10) and close(found[:, 1, :, 0], case["view2_y"], 1e-10)
    x = replayed_places(geometry.notes["crop_scale"], geometry.notes["crop_column"], 80, 80)
    assert close(torch.where(case["flipped"][:, None], x.flip(1), x), case["view2_x"], 1e-10)


def test_replayed_crops_of_random_maps(slices: Any) -> None:
    case = slices["overlap_small"]
    flips = case["flip_draw"][case["idx"]] < 0.5
    assert bool(flips.any()) and not bool(flips.all())
    assert close(replayed(case["feats"], draws(case, flips), (16, 16)), case["feats_out"], 1e-10)


def test_replayed_crops_of_the_whole_file(shared: Path) -> None:
    case = whole(shared, "overlap")
    geometry = draws(case, case["flipped"])
    for axis, name, draw in ((2, "x", "crop_column"), (1, "y", "crop_row")):  # view 1: the picture itself, 640 pixels
        places = replayed_places(geometry.notes["crop_scale"], geometry.notes[draw], 320, 640)
        mirrored = torch.where(case["flipped"][:, None], places.flip(1), places) if axis == 2 else places
        assert close(mirrored, case[f"view1_{name}"], 1e-10)
    small = case["small"]
    flips = small["flip_draw"][small["idx"]] < 0.5
    assert close(replayed(small["feats"], draws(small, flips), (16, 16)), small["feats_out"], 1e-10)
    assert close(replayed(small["image"], draws(small, flips), (64, 64)), small["image_out"], 1e-10)


def test_exact_points_are_nearer_than_the_released_ones(shared: Path) -> None:
    """The released rounding is off by 2.3 px of 640 on average; sampling at the crop's own places is not."""
    case = whole(shared, "overlap")
    ramp = (torch.arange(80, dtype=torch.float64) + 0.5) / 80
    exact = (case["view1_x"].view(6, 80, 4)).mean(2)  # the middle of a feature cell of view 1, as a fraction of the picture
    maps = ramp.expand(6, 1, 80, 80)
    points = torch.stack([exact[:, None, :].expand(-1, 80, -1), ramp[None, :, None].expand(6, -1, 80)], -1)
    found = sample_map(maps, points)[:, 0, 0]
    inner = (exact > 0.5 / 80) & (exact < 1 - 0.5 / 80)
    assert float((found - exact)[inner].abs().max()) * 640 < 1e-9
    assert 1 < float((case["view2_x"] - exact).abs().mean()) * 640 < 4
