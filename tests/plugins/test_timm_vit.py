from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from twinview import recipe
from twinview.errors import CheckpointError, RecipeError
from twinview.model import _copy
from twinview.ops.sines import sine_table
from twinview.values import Features
from twinview_timm import Encoder, parts

TINY: dict[str, Any] = {"name": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 3, "img_size": 64}


def make(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return Encoder(**{**TINY, **options}).make_encoder(masked=True, channels=3)


def masks(batch: int, cells: int, hidden: int) -> Tensor:
    """[batch, cells] bool, other cells in each image."""
    return torch.stack([torch.randperm(cells, generator=torch.Generator().manual_seed(i)) < hidden for i in range(batch)])


def grads(encoder: nn.Module) -> list[str]:
    return [name for name, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "sine_row", "final_norm": False, "init": "mae", "frozen_patch_embed": True},
        {"positions": "sine_column", "hide": "mask_token", "pooled": "token", "layer_scale": 0.1, "patch": 8},
        {"name": "vit_wee_patch16_reg1_gap_256", "drop_path": 0.2},
        {"name": "deit3_small_patch16_224", "positions": "sine_row", "pooled": "token"},
        {"name": "vit_base_patch16_clip_224"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(64, 64), (50, 33)])
def test_what_comes_out_is_what_spec_says_and_gradients_reach_everything(options: dict[str, Any], size: tuple[int, int]) -> None:
    encoder = make(**options)
    grid = encoder.spec.grid(size)
    hidden = masks(3, grid[0] * grid[1], 3)
    out: Features = encoder(torch.randn(3, 3, *size), hidden)
    seen = grid[0] * grid[1] - 3
    dropped = options.get("hide") != "mask_token"
    assert out.cells is not None and out.tokens is not None and out.pooled is not None
    assert out.cells.shape == (3, 48, *grid) and out.pooled.shape == (3, encoder.spec.pooled)
    assert out.tokens.shape == (3, out.prefix + (seen if dropped else seen + 3), 48) and out.prefix == encoder.spec.prefix
    assert (out.kept is not None) == dropped
    flat = out.cells.flatten(2).transpose(1, 2)
    if out.kept is not None:
        assert not flat[hidden].any() and not hidden.gather(1, out.kept).any() and (out.kept.diff(dim=1) > 0).all()
        assert torch.equal(flat.gather(1, out.kept[..., None].expand(-1, -1, 48)), out.tokens[:, out.prefix :])
    expected = out.tokens[:, 0] if options.get("pooled") == "token" else out.tokens[:, out.prefix :].mean(1)
    assert torch.equal(out.pooled, expected)
    total: Any = (out.tokens * torch.randn_like(out.tokens)).sum()
    total.backward()
    assert grads(encoder) == []
    assert all(p.requires_grad != (options.get("frozen_patch_embed", False)) for p in encoder.patch_embed.parameters())


@pytest.mark.parametrize("options", [{}, {"final_norm": False, "pooled": "token"}, {"name": "deit3_small_patch16_224"}, {"patch": 8}, {"name": "test_vit3"}], ids=str)
def test_it_is_timms_network(options: dict[str, Any]) -> None:
    encoder, images = make(**options).eval(), torch.randn(2, 3, 64, 64)
    own = encoder.published((64, 64))
    theirs = eval(own.load, {"timm": timm})
    theirs.load_state_dict(own.tensors, strict=True)
    theirs.eval()
    with torch.no_grad():
        out = encoder(images)
        torch.testing.assert_close(theirs.forward_features(images), out.tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs(images), out.pooled, rtol=0, atol=1e-5)


def test_nothing_of_a_hidden_cell_is_seen() -> None:
    images, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    hidden = masks(1, 16, 9)
    shown = hidden.view(1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    for hide in ("drop", "mask_token"):
        encoder = make(hide=hide)
        assert torch.equal(encoder(images, hidden).tokens, encoder(torch.where(shown, other, images), hidden).tokens)
        assert not torch.allclose(encoder(images).tokens, encoder(torch.where(shown, other, images)).tokens, atol=1e-3)


def test_dropped_tokens_are_those_of_the_visible_patches_alone() -> None:
    encoder = make(positions="sine_row")
    images, hidden = torch.randn(2, 3, 64, 64), masks(2, 16, 10)
    out = encoder(images, hidden)
    x = encoder.patch_embed(images).flatten(1, 2) + sine_table((4, 4), 48, row_first=True)
    for i in range(2):
        alone = torch.cat([encoder.cls_token[0], x[i, ~hidden[i]]])[None]
        torch.testing.assert_close(encoder.norm(encoder.blocks(alone))[0], out.tokens[i])


def test_sines_by_hand() -> None:
    row, column = (sine_table((3, 5), 16, row_first=first).view(3, 5, 16) for first in (True, False))
    w = 10000.0 ** -(torch.arange(4) / 4)
    for a, b in ((0, 0), (2, 1), (1, 4)):
        s = [torch.cat([(t * w).sin(), (t * w).cos()]) for t in (a, b)]
        torch.testing.assert_close(row[a, b], torch.cat(s))
        torch.testing.assert_close(column[a, b], torch.cat(s[::-1]))


def test_the_official_encoder_is_reproduced(shared: Path) -> None:
    case = torch.load(shared / "reference/siameseim/case_tiny64.pt", weights_only=True)
    encoder = make(positions="sine_row", final_norm=False)
    found = {k: v for k, v in case["state_dict"].items() if k in encoder.state_dict()}
    assert found.keys() == encoder.state_dict().keys()
    encoder.load_state_dict(found)
    batch, outputs = case["batch"], case["outputs"]
    out = encoder(batch["x1"], batch["mask"].flatten(1).bool())
    expected = outputs["online_block1"]
    torch.testing.assert_close(out.tokens, expected, rtol=0, atol=1.6e-5 * float(expected.abs().max()))
    positions = torch.cat([torch.zeros(1, 48), sine_table((4, 4), 48, row_first=True)])
    torch.testing.assert_close(positions, case["state_dict"]["pos_embed"][0], rtol=0, atol=1e-6)


def test_official_names_load_from_a_file(shared: Path, tmp_path: Path) -> None:
    state = torch.load(shared / "reference/siameseim/case_tiny64.pt", weights_only=True)["state_dict"]
    torch.save({"model": state}, tmp_path / "official.pth")
    encoder = make(positions="sine_row", final_norm=False, weights=str(tmp_path / "official.pth"))
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


def test_learned_positions_are_resampled_to_the_views_grid() -> None:
    encoder = make()
    prefix, places = encoder.positions((4, 4), torch.device("cpu"))
    assert torch.equal(torch.cat([prefix, places]), encoder.pos_embed[0])
    with torch.no_grad():
        encoder.pos_embed[:, 1:] = torch.linspace(0, 1, 4).repeat(4)[:, None]  # rises from left to right
    _, places = encoder.positions((2, 8), torch.device("cpu"))
    assert (places.view(2, 8, 48).diff(dim=1)[:, 2:-2] > 0).all() and places.view(2, 8, 48).diff(dim=0).abs().max() < 1e-5


def test_maes_start() -> None:
    encoder = make(init="mae", width=192, frozen_patch_embed=True)
    qkv, kernel = encoder.blocks[0].attn.qkv.weight, encoder.patch_embed.proj.weight
    for weight, fans in ((qkv, sum(qkv.shape)), (kernel, 192 + 768)):
        bound = (6 / fans) ** 0.5
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not encoder.blocks[1].mlp.fc1.bias.any() and encoder.patch_embed.proj.bias.any()
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_target_drops_no_path_in_train_mode() -> None:
    online = make(drop_path=0.5).train()
    assert sum(isinstance(m, DropPath) for m in online.modules()) == 2  # of the second block; the rate rises from 0
    target, images = _copy(online), torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        assert target.training and torch.equal(target(images).tokens, target(images).tokens)
        assert torch.equal(target(images).tokens, copy.deepcopy(online).eval()(images).tokens)
    assert not torch.equal(online(images).tokens, online(images).tokens)


def test_attention_is_fused_and_norms_are_fp32_under_autocast() -> None:
    encoder = make()
    assert all(block.attn.fused_attn for block in encoder.blocks)
    kinds: list[torch.dtype] = []
    encoder.blocks[0].norm1.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = encoder(images, masks(2, 16, 8)).tokens
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(images, masks(2, 16, 8))
    assert kinds[-1] == torch.float32 and (rough.tokens - exact).norm() < 0.05 * exact.norm()


def test_the_random_start_is_torchs_seed_alone() -> None:
    a, b, c = (make(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert not torch.equal(a["blocks.1.mlp.fc1.weight"], c["blocks.1.mlp.fc1.weight"])


def test_weights(tmp_path: Path) -> None:
    trained = make(5)
    torch.save({f"online.encoder.{k}": v for k, v in trained.state_dict().items()}, tmp_path / "run.pt")
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in make(weights=str(tmp_path / "run.pt")).state_dict().items())
    fresh = make(hide="mask_token", positions="sine_column", weights=str(tmp_path / "run.pt"))
    assert torch.equal(fresh.blocks[1].mlp.fc2.weight, trained.blocks[1].mlp.fc2.weight)
    plain: Any = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=3)  # with its classifier
    torch.save(plain.state_dict(), tmp_path / "timm.pth")
    assert torch.equal(make(weights=str(tmp_path / "timm.pth")).pos_embed, plain.pos_embed)


@pytest.mark.parametrize(("size", "tokens"), [(32, {}), (128, {}), (96, {"name": "vit_wee_patch16_reg1_gap_256"})])
def test_positions_of_another_size_are_resized_as_timm_does_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int, tokens: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "fc_norm": False}
    name = tokens.get("name", TINY["name"])
    plain: Any = timm.create_model(name, img_size=64, **sizes)
    torch.save(plain.state_dict(), tmp_path / "timm.pth")
    found = make(img_size=size, weights=str(tmp_path / "timm.pth"), **tokens)
    timms: Any = timm.create_model(name, img_size=size, num_classes=0, **sizes)
    timms.load_state_dict(checkpoint_filter_fn(plain.state_dict(), timms), strict=False)
    assert torch.equal(found.pos_embed, timms.pos_embed) and found.pos_embed.shape != plain.pos_embed.shape
    side = size // 16
    assert f"[encoder] weights: their table of positions is of 4 x 4 patches, and is resized to {side} x {side}; img_size = 64 keeps it as it is." in caplog.text


def test_what_is_no_table_of_positions_of_another_size_is_refused(tmp_path: Path) -> None:
    plain: Any = timm.create_model("vit_tiny_patch16_224", img_size=(64, 48), embed_dim=48, depth=2, num_heads=3)  # not square: no telling its sides
    torch.save(plain.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(CheckpointError, match=r"it has pos_embed \(1, 13, 48\), not \(1, 17, 48\)"):
        make(weights=str(tmp_path / "timm.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_tny_patch16_224"}, "name: timm has no network 'vit_tny_patch16_224'. Did you mean 'vit_tiny_patch16_224'?"),
        ({"name": "resnet18.a1_in1k"}, "Write name = 'resnet18', and weights = 'timm:resnet18.a1_in1k'"),
        ({"name": "deit_tiny_distilled_patch16_224"}, "has a second class token, for a teacher's labels. Write 'deit_tiny_patch16_224'."),
        ({"name": "resnet18", "positions": "sine_row"}, "positions: 'resnet18' is no plain vision transformer. Leave positions out."),
        ({"cells": "c4"}, "cells: 'vit_small_patch16_224' is a plain vision transformer, whose one map is `cells`. Leave cells out."),
        ({"positions": "sine_row", "width": 50}, "width: sine positions want a multiple of 4, not 50. Write 52"),
        ({"width": 48, "heads": 5}, "heads: 5 do not divide a width of 48"),
        ({"hide": "zero"}, "hide: wants one of 'drop', 'mask_token'"),
        ({"layer_scale": -1.0}, "layer_scale must be >= 0"),
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.structure(options, parts()["encoder"], "[encoder] timm.encoder")
    assert message in str(error.value) and str(error.value).startswith("[encoder] timm.encoder") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"name": "vit_wee_patch16_reg1_gap_256", "pooled": "token"}, "Token pooling needs the class token"), ({"heads": 5}, "should be divisible")],
    ids=str,
)
def test_what_timm_refuses_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        make(**{**options, "width": 0} if "heads" in options else options)
    assert "\n" not in str(error.value)


def test_sizes_that_cannot_be_published() -> None:
    with pytest.raises(ValueError, match="wants multiples of the patch, 16 pixels, not 64x40"):
        make().published((64, 40))


@pytest.mark.parametrize("positions", ["learned", "sine_row", "sine_column"])
@pytest.mark.parametrize("pooled", [{"pooled": "token_and_mean"}, {"pooled": "token", "pooled_blocks": 2}, {"pooled": "mean"}], ids=str)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_wee_patch16_reg1_gap_256"])
def test_pooled_features_of_any_width_leave_positions_as_they_are(name: str, pooled: dict[str, Any], positions: str) -> None:
    if "reg1" in name and pooled["pooled"] != "mean":
        pytest.skip("has no class token")
    encoder = make(name=name, positions=positions, **pooled)
    found = encoder(torch.randn(2, 3, 50, 33), masks(2, 12, 5))
    assert found.pooled.shape == (2, encoder.spec.pooled) and found.cells.shape == (2, 48, 4, 3)


def test_weights_of_a_run_are_not_put_behind_other_positions(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[encoder]\nuse = "timm.encoder"\npositions = "sine_row"\n')
    place = tmp_path / "checkpoints" / "step-000001"
    place.mkdir(parents=True)
    for weights in (tmp_path, place):
        with pytest.raises(RecipeError, match=r'was trained with positions = "sine_row", and this encoder has "sine_column". Write positions = "sine_row"'):
            make(positions="sine_column", weights=str(weights))


def test_tables_of_positions_in_a_file_are_those_of_the_encoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make(positions="sine_column")
    state = {**whole.state_dict(), "pos_embed": torch.cat([torch.zeros(1, 48), sine_table((4, 4), 48, row_first=False, device=torch.device("cpu"))])[None]}
    torch.save(state, tmp_path / "mae.pth")
    make(positions="sine_column", weights=str(tmp_path / "mae.pth"))
    with pytest.raises(RecipeError, match=r'mae.pth was trained with positions = "sine_column", and this encoder has "sine_row"'):
        make(positions="sine_row", weights=str(tmp_path / "mae.pth"))
    assert not caplog.text
    torch.save({**state, "pos_embed": torch.randn(1, 17, 48)}, tmp_path / "learned.pth")
    make(positions="sine_row", weights=str(tmp_path / "learned.pth"))
    assert 'was trained with positions = "learned", and this encoder has "sine_row", which knows nothing of them' in caplog.text
