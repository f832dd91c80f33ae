"""Masks, geometry, schedules, decoder and loss beside what the official code gave: a slice that lies here, and all of it where there is more."""
from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.engine.schedule import lr_factor, momentum_at, warmup_share
from twinview.recipe import find, read
from twinview.values import Geometry
from twinview_siameseim.dense import dense_loss
from twinview_siameseim.masks import block_mask
from twinview_siameseim.network import Decoder
from twinview_siameseim.official import our_name
from twinview_siameseim.positions import relate, relative_sines

SLICE = Path(__file__).parent / "fixtures" / "siameseim"


@pytest.fixture(params=["slice", "whole"])
def reference(request: pytest.FixtureRequest) -> Path:
    """The folder of reference tensors."""
    whole: Path = SLICE if request.param == "slice" else request.getfixturevalue("shared") / "reference" / "siameseim"
    return whole


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else json.loads(path.read_text())


def setting(name: str) -> tuple[tuple[int, int], int, int]:
    """`G14_n118_min16` -> grid, count, smallest block."""
    found = re.fullmatch(r"G(\d+)_n(\d+)_min(\d+)", name)
    assert found
    side, count, smallest = map(int, found.groups())
    return (side, side), count, smallest


# ---- masks
def test_every_mask_is_the_official_one_of_the_same_random_numbers(reference: Path) -> None:
    for name, masks in load(reference / "masks.pt").items():
        grid, count, smallest = setting(name)
        for seed, expected in enumerate(masks["per_seed"]):
            assert np.array_equal(block_mask(grid, count, random.Random(seed), smallest), expected.numpy()), (name, seed)
        stream = random.Random(1234)
        for n, expected in enumerate(masks["stream_seed1234"]):
            assert np.array_equal(block_mask(grid, count, stream, smallest), expected.numpy()), (name, n)


def test_masks_of_our_own_random_numbers_have_the_published_statistics(reference: Path) -> None:
    draws, n = random.Random(7), 3000
    for name, expected in load(reference / "masks_stats.json").items():
        grid, count, smallest = setting(name)
        masks = np.stack([block_mask(grid, count, draws, smallest) for _ in range(n)])
        assert (masks.sum((1, 2)) == count).all()
        freq = np.array(expected["freq"])
        deviations = (masks.mean(0) - freq) / np.sqrt(freq * (1 - freq) * (1 / n + 1 / expected["draws"]))
        assert np.abs(deviations).max() < 5 and np.sqrt((deviations**2).mean()) < 1.8, name  # cells of a mask are not independent
        agree = [(masks[:, 1:] == masks[:, :-1]).mean(), (masks[:, :, 1:] == masks[:, :, :-1]).mean()]
        assert np.mean(agree) == pytest.approx(expected["neighbour_agreement"], abs=0.004), name


# ---- geometry
def fractions(row: dict[str, Any], view: int) -> list[float]:
    """The box in the picture as it is: recorded boxes are in pixels of the picture as mirrored."""
    i, j, h, w = (row[f"{k}{view}"] for k in "ijhw")
    left = row["W"] - j - w if row[f"flip{view}"] else j
    return [left / row["W"], i / row["H"], (left + w) / row["W"], (i + h) / row["H"]]


def test_the_six_numbers_of_a_pair_follow_from_its_geometry(reference: Path) -> None:
    rows = load(reference / "geometry.json")["rows"]
    boxes = torch.tensor([[fractions(r, 1), fractions(r, 2)] for r in rows], dtype=torch.float64)
    flips = torch.tensor([[r["flip1"], r["flip2"]] for r in rows])
    geometry = Geometry(boxes, flips, torch.tensor([[r["H"], r["W"]] for r in rows]), ((64, 64), (64, 64)), ((0, 1),))
    found = relate(geometry, 0, 1, ((1, 1), (2, 2)))  # of a view of one cell: rho + 1/2 = s_h u + d_i, at u = 1/4 and 3/4
    down, across = ((places[:, 1] - places[:, 0]) * 2 for places in (found.rows, found.columns))
    first = [places[:, 0] + 0.5 - slope / 4 for places, slope in ((found.rows, down), (found.columns, across))]
    mirrored = flips[:, 0] ^ flips[:, 1]
    expected = {k: torch.tensor([float(r[k]) for r in rows], dtype=torch.float64) for k in rows[0] if k.startswith(("delta", "flip_delta"))}
    assert mirrored.tolist() == [r["relative_flip"] for r in rows] and 0.3 < mirrored.float().mean() < 0.7
    sign = 1 - 2 * mirrored.double()
    start = torch.where(mirrored, expected["flip_delta_j"], expected["delta_j"])
    for ours, official in ((first[0], "delta_i"), (down, "delta_h"), (across * sign, "delta_w")):
        torch.testing.assert_close(ours, expected[official], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first[1], start, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.scales, torch.stack([expected["delta_h"], expected["delta_w"]], 1), rtol=1e-10, atol=1e-10)


# ---- decoder and loss
def test_decoder_and_loss_of_one_case() -> None:
    case = load(SLICE / "decoder.pt")
    outputs, b = case["outputs"], case["batch"]["boxes"].double()
    decoder = Decoder(32, 32, depth=4, heads=4, mlp_ratio=4, norm="batch")
    start = "online.heads.DECODER."
    decoder.load_state_dict({our_name(k, "PROJECTOR", "DECODER").removeprefix(start): v for k, v in case["state_dict"].items()})
    fields = ("i", "j", "h", "w", "flip")
    rows = [{f"{k}{v + 1}": float(r[5 * v + n]) for v in (0, 1) for n, k in enumerate(fields)} | {"W": float(r[10]), "H": float(r[11])} for r in b]
    boxes = torch.tensor([[fractions(r, 1), fractions(r, 2)] for r in rows])
    geometry = Geometry(boxes, b[:, [4, 9]].bool(), b[:, [11, 10]], ((64, 64), (64, 64)), ((0, 1),))
    relation = relate(geometry, 0, 1, ((4, 4), (4, 4)))
    kept = (1 - case["batch"]["mask"]).flatten(1).nonzero()[:, 1].view(4, -1)

    def near(found: Tensor, name: str, tolerance: float = 1.6e-5) -> None:
        assert float((found - outputs[name]).abs().max() / outputs[name].abs().max()) <= tolerance, name

    near(torch.cat([e.expand(4, 4, 4, -1) for e in relative_sines(relation, 32)], -1).flatten(1, 2), "view2_pos_raw")
    near(decoder.places(relation).detach(), "view2_pos")
    pred = decoder(outputs["online_projector1"], 1, kept, (4, 4), relation)
    near(pred.detach().flatten(2).mT, "pred")
    pred = pred.detach().requires_grad_()
    terms = dense_loss(pred, outputs["target_projector1"][:, 1:].mT.unflatten(2, (4, 4)), torch.ones(4, 4, 4), 0.02)
    terms.loss.backward()  # type: ignore[no-untyped-call]
    near(terms.loss.detach(), "loss")
    assert pred.grad is not None
    near(pred.grad.flatten(2).mT, "grad_pred", 1e-5)


def on_a_rank(rank: int) -> torch.Tensor:
    case = load(SLICE / "loss_tworank.pt")[f"rank{rank}"]
    q = case["pred"].mT.unflatten(2, (4, 4)).requires_grad_()
    loss = dense_loss(q, case["target"].mT.unflatten(2, (4, 4)), torch.ones(4, 4, 4), 0.02).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([loss.detach().view(1), q.grad.flatten(2).mT.flatten()])


def test_two_ranks_share_the_correlation(two_ranks: Any) -> None:
    found, case = torch.stack(two_ranks(on_a_rank)), load(SLICE / "loss_tworank.pt")
    for rank in (0, 1):
        expected = case[f"rank{rank}"]
        assert float(found[rank, 0]) == pytest.approx(float(expected["loss"]), rel=1.6e-5)
        gap = (found[rank, 1:].view(4, 16, 32) - expected["grad_pred"]).abs().max() / expected["grad_pred"].abs().max()
        assert gap <= 1e-5, rank
    assert float(found[:, 0].mean()) == pytest.approx(float(case["joined_loss64"]), rel=1.6e-5)


def test_one_process_has_the_loss_of_the_joined_batch() -> None:
    case = load(SLICE / "loss_tworank.pt")
    q, t = (torch.cat([case[f"rank{r}"][k] for r in (0, 1)]).double().mT.reshape(8, 32, 4, 4) for k in ("pred", "target"))
    found = dense_loss(q, t, torch.ones(8, 4, 4), case["neg_weight"])
    assert found.loss.dtype == torch.float64 and float(found.loss) == pytest.approx(float(case["joined_loss64"]), rel=1e-7)
    goals = F.layer_norm(t.movedim(1, -1), (32,)).flatten(0, 2)
    spectrum = torch.linalg.eigvalsh(case["correlation64"])
    assert float(found.directions) == pytest.approx(float(spectrum.sum() ** 2 / spectrum.square().sum()), rel=1e-6)
    assert goals.square().sum(1).mean() == pytest.approx(32, rel=1e-3)


# ---- schedules
def test_the_published_recipe_has_the_published_schedules(reference: Path) -> None:
    published = load(reference / "schedules.json")
    recipe = read(find("siameseim/imagenet_vitb16"))
    epoch = 1_281_167 // recipe.run.batch_size
    assert recipe.run.epochs and recipe.run.epochs == published["epochs"] and recipe.optimizer.peak(recipe.run.batch_size) == pytest.approx(published["lr_peak"])
    warmup = warmup_share(recipe, int(recipe.run.epochs) * epoch, epoch)
    for e, lr, mm in zip(published["epoch"], published["lr"], published["mm"], strict=True):
        share = e / published["epochs"]
        assert published["lr_peak"] * lr_factor(recipe.schedule, share, warmup) == pytest.approx(lr, rel=1e-6, abs=1e-18)
        assert momentum_at(recipe.target, share) == pytest.approx(mm, rel=1e-9)
