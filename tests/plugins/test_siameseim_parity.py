"""One whole case of the official code: every intermediate, the loss, all gradients, the averaged target, six optimizer steps."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.step import take_step
from twinview.model import Siamese
from twinview.recipe import read
from twinview.values import Batch, Geometry, Progress
from twinview_siameseim.dense import correlation
from twinview_siameseim.network import Decoder
from twinview_siameseim.official import from_official, our_name
from twinview_siameseim.positions import relate, relative_sines

Case = dict[str, Any]
PROJECTOR, DECODER = "siameseim/dense/projector", "siameseim/relative/decoder32"
EPOCHS, EPOCH = 4, 3  # of the official training: epochs, steps an epoch


@pytest.fixture
def case(shared: Path) -> Case:
    """The official tensors."""
    found: Case = torch.load(shared / "reference/siameseim/case_tiny64.pt", weights_only=True)
    return found


@pytest.fixture
def built(case: Case, photo_shards: str) -> TrainSetup:
    """The recipe of the case, with the weights that its traced step starts from; twelve images of four a step are its three steps an epoch."""
    made = build(read({
        "views": {"use": "siameseim.crops", "size": 64},
        "masks": {"use": "siameseim.blocks", "count": 10, "smallest": 4},
        "encoder": {
            "use": "timm.encoder", "name": "vit_tiny_patch16_224", "width": 48, "depth": 2, "heads": 3, "positions": "sine_row",
            "final_norm": False, "init": "mae", "frozen_patch_embed": True,
        },
        "align": {"use": "siameseim.relative", "attention_heads": 4},
        "loss": [{"use": "siameseim.dense", "channels": 32, "attention_heads": 4, "negative_weight": 0.02}],
        "target": {"momentum": 0.995, "update": "before_forward"},
        "data": {"shards": photo_shards, "workers": 0, "mean": [0.0] * 3, "std": [1 / 255] * 3},  # the case's views are normalized already
        "optimizer": {"use": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "schedule": {"warmup_epochs": 1},
        "run": {"epochs": EPOCHS, "batch_size": 4, "clip_gradients": 1.0, "device": "cpu"},
    }))
    made.model.load_state_dict(from_official(case["state_dict"]))
    return made


def batch_of(given: dict[str, Tensor]) -> Batch:
    """An official batch; its boxes are in pixels of the picture as mirrored, ours in fractions of the picture as it is."""
    b = given["boxes"].double()
    width, height = b[:, 10], b[:, 11]
    boxes = []
    for i, j, h, w, flip in (b[:, :5].T, b[:, 5:10].T):
        left = torch.where(flip.bool(), width - j - w, j)
        boxes.append(torch.stack([left / width, i / height, (left + w) / width, (i + h) / height], 1))
    flips = b[:, [4, 9]].bool()
    geometry = Geometry(torch.stack(boxes, 1).float(), flips, torch.stack([height, width], 1).long(), ((64, 64), (64, 64)), ((0, 1),))
    n = len(b)
    keys, ids = tuple(map(str, range(n))), torch.arange(n)
    return Batch(keys, ids, ids, 0, (given["x1"], given["x2"]), geometry, (given["mask"].flatten(1).bool(), None))


def progress(step: int) -> Progress:
    return Progress(step, EPOCHS * EPOCH, step // EPOCH, step / (EPOCHS * EPOCH))


def agree(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Largest difference, as a share of the expected tensor's largest magnitude."""
    assert found.shape == expected.shape, what
    gap = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12)
    assert gap <= tolerance, f"{what}: {float(gap):.1e}"


class Recorder:
    """What went into modules and came out of them."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def out(self, name: str, module: nn.Module) -> None:
        def keep(_: nn.Module, __: Any, y: Tensor) -> None:
            if y.requires_grad:
                y.retain_grad()
            self.seen[name] = y

        module.register_forward_hook(keep)

    def into(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, args: self.seen.__setitem__(name, args[0]))


def record(model: Siamese) -> Recorder:
    """Record under the official names."""
    r = Recorder()
    for role, branch in (("online", model.online), ("target", model.target)):
        assert branch is not None
        encoder: Any = branch.encoder
        projector: Any = branch.heads[PROJECTOR]
        r.out(f"{role}_patch_embed", encoder.patch_embed)
        r.into(f"{role}_encoder_in", encoder.blocks[0])
        for k, block in enumerate(encoder.blocks):
            r.out(f"{role}_block{k}", block)
        r.out(f"{role}_decoder_embed", projector.embed)
        for k, block in enumerate(projector.blocks):
            r.out(f"{role}_projector{k}", block)
    decoder: Any = model.online.heads[DECODER]
    r.into("predictor_in", decoder.blocks)
    for k, block in enumerate(decoder.blocks):
        r.out(f"predictor{k}", block)
    r.out("pred", decoder.out)
    return r


def test_a_step_is_the_official_one(case: Case, built: TrainSetup) -> None:
    model, outputs = built.model.train(), case["outputs"]
    seen = record(model).seen
    batch = batch_of(case["batch"])
    model.follow(case["meta"]["mm"])
    found = model(batch, progress(0), watch=True)
    found.loss.backward()

    # activations
    decoder = model.online.heads[DECODER]
    assert isinstance(decoder, Decoder)
    relation = relate(batch.geometry, 0, 1, ((4, 4), (4, 4)))
    blocks = [e.expand(4, 4, 4, -1) for e in relative_sines(relation, 32)]
    seen |= {"view2_pos_raw": torch.cat(blocks, -1).flatten(1, 2), "view2_pos": decoder.places(relation)}
    target = seen["target_projector1"][:, 1:]
    seen |= {"target": target, "target_normed": F.layer_norm(target, (32,)), "loss": found.loss.detach()}
    compared = [name for name in outputs if name in seen]
    for name in compared:
        agree(seen[name].detach().reshape(outputs[name].shape), outputs[name], 1.6e-5, name)
    assert set(outputs) - set(compared) == {"decoder_pred_all_tokens", "grad_pred", "correlation64", "pos_term64", "neg_term64", "loss64"}
    agree(correlation(seen["target_normed"].flatten(0, 1).double(), torch.ones(64)), outputs["correlation64"], 1.6e-5, "correlation")
    assert float(found.notes["dense/pos"]) == pytest.approx(float(outputs["pos_term64"]) / 32, rel=1.6e-5)
    assert float(found.notes["dense/neg"]) == pytest.approx(0.02 * float(outputs["neg_term64"]) / 32, rel=1.6e-5)
    assert found.loss.item() == pytest.approx(float(outputs["loss64"]), rel=1.6e-5)

    # gradients
    assert seen["pred"].grad is not None
    agree(seen["pred"].grad, outputs["grad_pred"], 1e-5, "grad_pred")
    grads = {our_name(name, PROJECTOR, DECODER).removeprefix("online."): g for name, g in case["grads"].items()}
    ours = {name: p.grad for name, p in model.online.named_parameters() if p.requires_grad}
    assert ours.keys() == grads.keys()
    largest = max(float(g.abs().max()) for g in grads.values())
    for name, g in ours.items():
        assert g is not None and float((g - grads[name]).abs().max()) <= 5e-6 * largest, name

    # the average, and each branch's own statistics
    state = model.state_dict()
    for name, value in from_official(case["state_dict_after_forward"]).items():
        agree(state[name], value, 1.6e-5, name)


def test_every_name_of_an_official_checkpoint_has_its_place(case: Case, built: TrainSetup) -> None:
    assert from_official(case["state_dict"]).keys() == built.model.state_dict().keys()
    with pytest.raises(KeyError, match="holds no 'head.weight'"):
        our_name("head.weight", PROJECTOR, DECODER)


def test_an_encoder_starts_from_an_official_checkpoint(case: Case, built: TrainSetup, tmp_path: Path) -> None:
    torch.save({"model": case["state_dict"]}, tmp_path / "pretrained.pth")
    table = built.recipe.table()
    table["encoder"]["weights"] = str(tmp_path / "pretrained.pth")
    encoder = build(read(table)).model.online.encoder
    for name, value in built.model.online.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name


def test_weights_start_as_published(case: Case, built: TrainSetup) -> None:
    """Not the same draws: the same zeros, ones, bounds and deviations, and a target that is a copy."""
    again = build(built.recipe).model.state_dict()
    for name, value in from_official(case["state_dict_init"]).items():
        ours, published = again[name].float(), value.float()
        if float(published.std(correction=0)) == 0:
            assert torch.equal(ours, published), name
        elif published.numel() >= 32:
            assert 0.6 < float(ours.abs().max() / published.abs().max()) < 1.7, name
            assert 0.6 < float(ours.std() / published.std()) < 1.7, name
        if name.startswith("target."):
            assert torch.equal(ours, again[name.replace("target.", "online.", 1)].float()), name


def test_decay_is_for_matrices_and_tokens(case: Case, built: TrainSetup) -> None:
    names = {id(p): name for name, p in built.trainable.items()}
    for kind, decay in (("decay", 0.05), ("no_decay", 0.0)):
        expected = {our_name(name, PROJECTOR, DECODER).removeprefix("online.") for name in case["train"][kind]}
        assert {names[id(p)] for g in built.optimizer.param_groups if g["weight_decay"] == decay for p in g["params"]} == expected
    assert {n for n, p in built.model.online.named_parameters() if not p.requires_grad} == {f"encoder.patch_embed.proj.{k}" for k in ("weight", "bias")}


def test_six_steps_of_the_engine_are_the_official_ones(case: Case, built: TrainSetup, tmp_path: Path) -> None:
    train = case["train"]
    engine = wrap(built, tmp_path)
    rows = []
    for step in range(train["iters"]):
        batch = batch_of(nth(train["batches"], step % 3))
        taken = take_step(built, engine, iter([batch]), progress(step), watch=True).numbers()
        rows.append([taken[k] for k in ("lr", "momentum", "loss", "grad_norm")])
    expected = np.array(train["lr_mm_loss_gradnorm"])
    found = np.array(rows)
    assert np.allclose(found[:, :2], expected[:, :2], rtol=1e-6, atol=0) and found[0, 0] == 0
    assert np.abs(found[:, 2] / expected[:, 2] - 1).max() <= 1.5e-5
    assert np.abs(found[:, 3] / expected[:, 3] - 1).max() <= 1e-4
    state = built.model.state_dict()
    for name, value in from_official(train["state_dict_final"]).items():
        ours = state[name]
        if name.endswith("attn.qkv.bias"):  # a key's bias moves no attention: its gradient is rounding, which Adam makes as large as any
            third = len(value) // 3
            ours, value = (torch.cat([x[:third], x[2 * third :]]) for x in (ours, value))
        if value.is_floating_point() and "running" not in name:
            assert float((ours - value).abs().max()) <= 4e-5, name


def nth(batches: dict[Any, Any], n: int) -> dict[str, Tensor]:
    """One of the stored batches."""
    found: dict[str, Tensor] = batches[sorted(batches)[n]]
    return found
