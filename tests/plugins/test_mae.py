"""MAE's decoder, patches and loss, its weights and its pictures, and runs of it on one view."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinview import train
from twinview.errors import TwinviewError
from twinview_mae.decoder import OFFICIAL, Decoder
from twinview_mae.official import from_official
from twinview_mae.pixels import Pixels, normalized, patches, pixel_loss, whole

VIT = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 2, "heads": 2, "positions": "sine_column", "init": "mae"}


def recipe(shards: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy({
        "views": {"use": "byol.crops", "views": 1, "size": 32},
        "masks": {"use": "masks.random", "ratio": 0.75},
        "encoder": VIT,
        "loss": [{"use": "mae.pixels", "width": 16, "depth": 1, "attention_heads": 4}],
        "target": {"momentum": 0.0},
        "data": {"shards": shards, "workers": 0},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "run": {"steps": 6, "batch_size": 4, "device": "cpu", "log_every": 1, "checkpoint_every": 3},
        **changes,
    })


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# ---- patches and loss
def test_a_patch_is_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    cut = patches(images, 2)
    assert cut.shape == (2, 6, 12)
    for y, x, c in ((0, 0, 0), (1, 0, 2), (0, 1, 1)):
        assert cut[1, 4, (y * 2 + x) * 3 + c] == images[1, c, 2 + y, 2 + x]  # cell 4: the second row's second
    assert torch.equal(whole(cut, (2, 3), 2), images)


def test_sides_that_are_no_multiple_are_filled_up() -> None:
    images = torch.rand(1, 3, 5, 7)
    again = whole(patches(images, 4), (2, 2), 4)
    assert torch.equal(again[..., :5, :7], images) and not again[..., 5:, :].any() and not again[..., 7:].any()


def test_the_loss_counts_hidden_cells_alone_and_all_of_a_batch_together() -> None:
    hidden = torch.tensor([[True, False, False], [True, True, False]])
    predictions, target = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    loss = pixel_loss(predictions, target, hidden)
    expected = torch.stack([(predictions[b, n] - target[b, n]).square().mean() for b, n in ((0, 0), (1, 0), (1, 1))]).mean()
    assert torch.allclose(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert predictions.grad is not None and torch.equal(predictions.grad.abs().sum(2) > 0, hidden)


def test_to_say_each_patch_s_mean_costs_about_one() -> None:
    target = normalized(torch.randn(4, 9, 192) * 3 + 5)
    assert float(pixel_loss(torch.zeros_like(target), target, torch.ones(4, 9, dtype=torch.bool))) == pytest.approx(191 / 192, rel=1e-4)
    flat = normalized(torch.full((1, 1, 48), 0.3))
    assert torch.isfinite(flat).all() and float(flat.abs().max()) < 1e-2


def test_the_loss_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert pixel_loss(torch.randn(1, 2, 4).bfloat16(), torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)).dtype == torch.float32


# ---- the decoder
def seen(kept: Tensor | None) -> tuple[Decoder, Tensor, Tensor]:
    torch.manual_seed(0)
    decoder = Decoder(8, 16, depth=1, heads=4, mlp_ratio=2, out=12).eval()
    hidden = torch.ones(2, 6, dtype=torch.bool).scatter(1, torch.tensor([[1, 4], [0, 5]]), False)
    return decoder, torch.randn(2, 1 + (6 if kept is None else 2), 8), hidden


def test_kept_tokens_and_all_tokens_of_which_some_are_hidden_are_the_same() -> None:
    kept = torch.tensor([[1, 4], [0, 5]])
    decoder, tokens, hidden = seen(kept)
    every = torch.randn(2, 7, 8)
    every[:, 0] = tokens[:, 0]
    every[:, 1:].scatter_(1, kept[..., None].expand(-1, -1, 8), tokens[:, 1:])
    assert torch.allclose(decoder(tokens, 1, kept, hidden, (2, 3)), decoder(every, 1, None, hidden, (2, 3)), atol=1e-6)


def test_the_order_of_the_kept_tokens_changes_nothing() -> None:
    kept = torch.tensor([[1, 4], [0, 5]])
    decoder, tokens, hidden = seen(kept)
    turned = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], 1)
    assert torch.allclose(decoder(tokens, 1, kept, hidden, (2, 3)), decoder(turned, 1, kept.flip(1), hidden, (2, 3)), atol=1e-6)


@pytest.mark.parametrize("width", [10, 24])
def test_widths_that_heads_or_sines_do_not_divide_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width wants a multiple of 16"):
        Pixels(width=width)


# ---- weights
def official(tmp_path: Path) -> Path:
    """A file as the release saves it."""
    decoder = Decoder(32, 16, depth=1, heads=4, mlp_ratio=4, out=192)
    names = {ours: theirs for theirs, ours in OFFICIAL.items()}
    state = {next(theirs + k.removeprefix(ours) for ours, theirs in names.items() if k.startswith(ours)): v for k, v in decoder.state_dict().items()}
    path = tmp_path / "official.pth"
    torch.save({"model": {**state, "cls_token": torch.zeros(1, 1, 32), "norm.weight": torch.ones(32), "decoder_pos_embed": torch.zeros(1, 17, 16)}}, path)
    return path


def test_the_decoder_of_an_official_checkpoint_is_loaded_by_a_recipe(tmp_path: Path, photo_shards: str) -> None:
    path = official(tmp_path)
    table = recipe(photo_shards)
    table["loss"][0]["weights"] = str(path)
    table["optimizer"]["lr"] = 1e-12
    run = train(table, "run.steps=1", run=tmp_path / "run")
    found = torch.load(run.checkpoint / "model.pt", weights_only=True)
    for name, value in from_official(torch.load(path, weights_only=True)["model"]).items():
        if ".heads." in name:
            assert torch.allclose(found[name], value, atol=1e-6), name
    again = recipe(photo_shards)
    again["loss"][0]["weights"] = str(tmp_path / "run")  # a run's own folder too
    assert train(again, "run.steps=1", run=tmp_path / "again").step == 1


def test_a_decoder_of_another_width_is_refused_by_name(tmp_path: Path, photo_shards: str) -> None:
    table = recipe(photo_shards)
    table["loss"][0] |= {"weights": str(official(tmp_path)), "width": 32}
    with pytest.raises(TwinviewError, match=r"\[\[loss\]\] mae.pixels.weights = .*does not fit the decoder: it has"):
        train(table, run=tmp_path / "run")


# ---- runs
def test_it_learns_without_a_target_and_draws_what_it_says(tmp_path: Path, photo_shards: str) -> None:
    run = train(recipe(photo_shards), run=tmp_path / "whole")
    found = losses(tmp_path / "whole")
    assert run.step == 6 and found[-1] < found[0]
    assert (tmp_path / "whole" / "pictures" / "pixels.png").is_file()
    names = torch.load(run.checkpoint / "model.pt", weights_only=True)
    assert not [name for name in names if name.startswith("target.")]


def test_convolutional_encoders_and_several_masked_views_train_too(tmp_path: Path, photo_shards: str) -> None:
    for encoder in ({"use": "torchvision.resnet", "stem": "small"}, {**VIT, "hide": "mask_token"}):
        table = recipe(photo_shards, encoder=encoder, views={"use": "byol.crops", "size": 32}, masks={"use": "masks.random", "views": [0, 1]})
        assert train(table, "run.steps=2", run=tmp_path / str(encoder["use"])).loss < 3


def test_without_masks_it_is_refused(photo_shards: str) -> None:
    table = recipe(photo_shards)
    del table["masks"]
    with pytest.raises(TwinviewError, match=r"mae.pixels: needs masked views. Add a \[masks\] table"):
        train(table)


@pytest.mark.parametrize("size", [33, 100])
def test_views_that_are_no_multiple_of_the_patch_train(size: int, photo_shards: str, tmp_path: Path) -> None:
    table = recipe(photo_shards, encoder={"use": "tiny.encoder"}, views={"use": "byol.crops", "views": 1, "size": size})
    train({**table, "run": {**table["run"], "steps": 1}}, run=tmp_path / "run")
    assert 0 < losses(tmp_path / "run")[0] < 10
