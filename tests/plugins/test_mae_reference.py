"""MAE beside tensors made by the official code: a slice (the decoder) that lies here, and the whole step where the file is at hand."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinview.assembly import assemble
from twinview.engine.optimizer import make_optimizer, set_rates
from twinview.engine.schedule import lr_factor, warmup_share
from twinview.model import LazyStep, Siamese
from twinview.ops.sines import sine_table
from twinview.recipe import find, from_table, read
from twinview.values import Batch, Geometry, Progress
from twinview_mae.decoder import Decoder
from twinview_mae.official import from_official, our_name
from twinview_mae.pixels import normalized, patches, pixel_loss

SLICE = Path(__file__).parent / "fixtures" / "mae" / "slice.pt"
GRID, SIDE, KEPT = (4, 4), 6, 4
RECIPE: dict[str, Any] = {
    "views": {"use": "byol.crops", "views": 1, "size": 24},
    "masks": {"use": "masks.random", "ratio": 0.75},
    "encoder": {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": SIDE, "width": 24, "depth": 2, "heads": 3,
                "positions": "sine_column", "init": "mae"},
    "loss": [{"use": "mae.pixels", "width": 24, "depth": 2, "attention_heads": 4}],
    "target": {"momentum": 0.0},
    "data": {"shards": "none"},
    "optimizer": {"use": "adamw", "lr": 1.8e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
    "run": {"steps": 10, "batch_size": 3, "device": "cpu"},
}


def near(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Largest difference, as a share of the expected tensor's largest magnitude."""
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    gap = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert gap <= tolerance, f"{what}: {gap:.1e}"


def hidden_of(case: dict[str, Any]) -> Tensor:
    found: Tensor = case["mask"] == 1
    return found


def test_decoder_and_loss_of_the_slice() -> None:
    case = torch.load(SLICE, weights_only=True)
    decoder = Decoder(24, 24, depth=2, heads=4, mlp_ratio=4, out=108).double()
    decoder.load_state_dict({our_name(k).removeprefix("heads.mae/pixels/decoder."): v for k, v in case["state"].items()})
    hidden = hidden_of(case)
    predictions = decoder(case["latent"], 1, case["ids_shuffle"][:, :KEPT], hidden, GRID)
    near(predictions[:1], case["pred"], 1e-13, "pred")
    plain = patches(case["images"], SIDE)
    target = normalized(plain)
    near(target[:1], case["target_norm"], 1e-13, "target")
    loss = pixel_loss(predictions, target, hidden)
    near(loss, case["loss"], 1e-13, "loss")
    near(pixel_loss(predictions, plain, hidden), case["loss_raw"], 1e-13, "loss_raw")
    loss.backward()  # type: ignore[no-untyped-call]
    largest = max(float(g.abs().max()) for g in case["grads"].values())
    for name, expected in case["grads"].items():
        gradient = decoder.get_parameter(our_name(name).removeprefix("heads.mae/pixels/decoder.")).grad
        assert gradient is not None and float((gradient - expected).abs().max()) <= 1e-13 * largest, name


@pytest.fixture
def case(shared: Path) -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = torch.load(shared / "reference/baselines/mae.pt", weights_only=True)
    return found


def test_a_whole_step_is_the_official_one(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assembly = assemble(from_table(RECIPE))
    encoder: Any = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, 3), encoder).train().double()
    weights = from_official(case["state"])
    assert {f"online.{k}" for k, _ in model.online.named_parameters()} == set(weights)
    model.load_state_dict(weights)
    seen: dict[str, Tensor] = {}
    encoder.patch_embed.register_forward_hook(lambda _, __, y: seen.__setitem__("patch_embed", y.flatten(1, 2)))
    encoder.blocks[0].register_forward_pre_hook(lambda _, x: seen.__setitem__("encoder_in", x[0]))
    for k, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _, __, y, k=k: seen.__setitem__(f"block{k}", y))
    encoder.norm.register_forward_hook(lambda _, __, y: seen.__setitem__("latent", y))
    decoder: Any = model.online.heads["mae/pixels/decoder"]
    decoder.blocks[0].register_forward_pre_hook(lambda _, x: seen.__setitem__("decoder_in", x[0]))
    decoder.out.register_forward_hook(lambda _, __, y: seen.__setitem__("pred", y))

    monkeypatch.setattr(LazyStep, "_make_pixels", lambda self, view: case["images"])
    geometry = Geometry(torch.tensor([[[0.0, 0, 1, 1]]] * 3), torch.zeros(3, 1, dtype=torch.bool), torch.full((3, 2), 24.0), ((24, 24),), ())
    batch = Batch(("a", "b", "c"), torch.arange(3), torch.arange(3), 0, (torch.zeros(3, 3, 24, 24),), geometry, (hidden_of(case),))
    outcome = model(batch, Progress(0, 10, 0, 0.0))
    outcome.loss.backward()

    order = case["ids_shuffle"][:, :KEPT].argsort(1)  # ours keeps the cells in the order of the map, the release in the order of its draws
    order = torch.cat([torch.zeros(3, 1, dtype=torch.int64), 1 + order], 1)[..., None].expand(-1, -1, 24)
    for name in ("encoder_in", "block0", "block1", "latent"):
        near(seen[name], case[name].gather(1, order), 1e-13, name)
    near(seen["patch_embed"], case["patch_embed"], 1e-13, "patch_embed")
    near(seen["decoder_in"], case["decoder_in"], 1e-13, "decoder_in")
    near(seen["pred"], case["pred"], 1e-13, "pred")
    near(outcome.terms["pixels"], case["loss"], 1e-13, "loss")
    largest = max(float(g.abs().max()) for g in case["grads"].values())
    parameters = dict(model.named_parameters())
    for name, expected in case["grads"].items():
        gradient = parameters[f"online.{our_name(name)}"].grad
        assert gradient is not None and float((gradient - expected).abs().max()) <= 1e-13 * largest, name

    optimizer, moved = make_optimizer(assembly, model.online)
    names = {id(p): name for name, p in moved.items()}
    for kind, decay in (("decay", 0.05), ("no_decay", 0.0)):
        expected_names = {our_name(name) for name in case["meta"][kind]}
        assert {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] == decay for p in g["params"]} == expected_names
    set_rates(optimizer, case["meta"]["lr"], 1.0)
    optimizer.step()
    for name, expected in case["state_after"].items():
        ours = parameters[f"online.{our_name(name)}"].detach()
        if name.endswith("qkv.bias"):  # a key's bias moves no attention: its gradient is rounding, which Adam makes as large as any
            third = len(expected) // 3
            ours, expected = (torch.cat([x[:third], x[2 * third :]]) for x in (ours, expected))
        assert float((ours - expected).abs().max()) <= 1e-11, name


def test_positions_are_the_official_tables(case: dict[str, Any]) -> None:
    for name in ("pos_embed", "decoder_pos_embed"):
        assert torch.equal(sine_table(GRID, 24, row_first=False), case["state"][name][0, 1:].float()), name
        assert not case["state"][name][0, 0].any()


def test_the_random_start_has_the_official_statistics(case: dict[str, Any]) -> None:
    assembly = assemble(from_table(RECIPE))
    encoder = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, 3), encoder)
    for name, parameter in model.online.named_parameters():
        official = next(k for k in case["init_stats"] if "pos_embed" not in k and our_name(k) == name)
        mean, std, largest = case["init_stats"][official].tolist()
        if std == 0:
            assert torch.all(parameter == mean), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(std, rel=0.45), name  # of as few as 24 numbers
            assert float(parameter.detach().abs().max()) <= 1.6 * largest, name


def test_the_published_recipes_have_the_published_schedule() -> None:
    published = torch.load(SLICE, weights_only=True)["schedule"].tolist()
    for name in ("mae/imagenet_vitb16", "mae/imagenet_vitl16", "mae/imagenet_vith14"):
        recipe = read(find(name), ["run.epochs=800"])  # those of the tensor
        epoch = 1_281_167 // recipe.run.batch_size
        warmup = warmup_share(recipe, 800 * epoch, epoch)
        for at, rate in published:
            found = recipe.optimizer.peak(recipe.run.batch_size) * lr_factor(recipe.schedule, at / 800, warmup)
            assert found == pytest.approx(rate, rel=1e-6, abs=1e-12), (name, at)
