"""Four steps over two epochs beside tensors of the official code (facebookresearch/dino, commit 7c446df): outputs, losses, centers, weights."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.assembly import assemble
from twinview.engine.frozen import Frozen
from twinview.engine.optimizer import make_optimizer, set_rates
from twinview.model import Siamese
from twinview.ops.transformer import Block
from twinview.recipe import read
from twinview.values import Batch, EncoderSpec, Features, Geometry, Level, Progress

FILE = next((folder / "shared/reference/baselines/dino.pt" for folder in Path(__file__).resolve().parents if (folder / "shared").is_dir()), None)
PATCH, WIDTH, CROPS, EPOCH = 8, 24, 5, 2  # steps of an epoch


class Patches(nn.Module):
    """The patch embedding under the official name."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)


class OfficialVit(nn.Module):
    """DINO's vision transformer: learned positions, resized for other images by a scale of (n + 0.1) / 4 (section 3.2 and the release)."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 17, WIDTH))
        self.patch_embed = Patches()
        self.blocks = nn.Sequential(*(Block(WIDTH, 3, 4.0, lambda width: nn.LayerNorm(width, eps=1e-6)) for _ in range(2)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.spec = EncoderSpec(pooled=WIDTH, cells=Level(WIDTH, PATCH), prefix=1, patch=PATCH)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        x = self.patch_embed.proj(images)
        grid = x.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + self.positions(grid[0])
        x = self.norm(self.blocks(x))
        return Features(x[:, 1:].mT.unflatten(2, grid), x[:, 0], {}, x, 1)

    def positions(self, n: int) -> Tensor:
        if n == 4:
            return self.pos_embed
        table = self.pos_embed[:, 1:].mT.unflatten(2, (4, 4))
        resized = F.interpolate(table, scale_factor=((n + 0.1) / 4,) * 2, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).mT], 1)


def renamed(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official names of weights as they are in a branch."""
    found = {}
    for name, value in official.items():
        name = name.replace("backbone.", "encoder.").replace("head.mlp.", "heads.dino/distill/projector.layers.")
        name = name.replace("head.last_layer.weight_v", "heads.dino/distill/prototypes.direction")
        found[name.replace("head.last_layer.weight_g", "heads.dino/distill/prototypes.length")] = value
    return found


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    if FILE is None or not FILE.is_file():
        pytest.skip("needs the tensors of the official code")
    found: dict[str, Any] = torch.load(FILE, weights_only=True)
    return found


def model_of(reference: dict[str, Any]) -> Siamese:
    table = {
        "views": {"use": "dino.multi_crop", "size": 32, "local": 3, "local_size": 16},
        "encoder": {"use": "tiny.encoder"},
        "loss": [{"use": "dino.distill", "hidden": 28, "bottleneck": 12, "outputs": 40, "target_temperature": 0.07, "warmup_epochs": 2}],
        "data": {"shards": "none.tar"}, "optimizer": {"use": "adamw", "lr": 1.0, "weight_decay": 0.04}, "run": {"steps": 6, "batch_size": 3},
    }
    assembly, encoder = assemble(read(table)), OfficialVit()
    model = Siamese(assembly, assembly.dims(encoder, 12), encoder).double().train()
    model.mean.zero_()
    model.std.fill_(1.0)
    assert model.target is not None
    model.online.load_state_dict(renamed(reference["student"]))
    model.target.load_state_dict(renamed(reference["teacher"]))
    model.state["dino/distill/center"].value.copy_(reference["center"])
    return model


def batch_of(model: Siamese, images: list[Tensor], epoch: int) -> Batch:
    count = len(images[0])
    one: Geometry = model.assembly.calls.sample_views(size=(64, 64), rng=np.random.default_rng(0))
    geometry = one._replace(boxes=one.boxes.expand(count, -1, -1), flips=one.flips.expand(count, -1), source=one.source.expand(count, -1))
    ids = torch.arange(count)
    return Batch(tuple(map(str, range(count))), ids, ids, epoch, tuple(images), geometry, (None,) * CROPS)


def close(found: Tensor, wanted: Tensor, what: str, tolerance: float = 1e-9) -> None:
    wanted = wanted.reshape(found.shape)
    off, most = float((found.detach() - wanted).abs().max()), tolerance * max(1e-3, float(wanted.abs().max()))
    assert off <= most, f"{what}: {off:.3g} off, at most {most:.3g}"


def test_four_steps_are_those_of_the_official_code(reference: dict[str, Any]) -> None:
    model, meta = model_of(reference), reference["meta"]
    assembly, online = model.assembly, model.online
    assert model.target is not None
    optimizer, trainable = make_optimizer(assembly, online)
    frozen = Frozen(optimizer, trainable)
    part = assembly.parts["dino.distill"]
    for number in range(4):
        epoch, place = divmod(number, EPOCH)
        thawed = frozen.begin(epoch)
        for name in thawed if not place else ():
            optimizer.state.pop(trainable[name], None)  # as the engine does: the layer's first step is its optimizer's first
        set_rates(optimizer, float(reference["lr"][number]), 1.0, float(reference["weight_decay"][number]), epoch)
        progress = Progress(number, 6, epoch, number / 6)
        outcome = model(batch_of(model, reference["data"][epoch][place], epoch), progress)
        if not number:
            chain = [outcome.step.head(part, "projector"), outcome.step.head(part, "prototypes")]
            close(torch.cat([outcome.step.apply(chain, v, "online", on="pooled") for v in range(5)]), reference["student_out"], "student_out")
            close(torch.cat([outcome.step.apply(chain, v, "target", on="pooled") for v in (0, 1)]), reference["teacher_out"], "teacher_out")
        optimizer.zero_grad()
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        close(outcome.terms["dino"], reference["losses"][number], f"loss {number}")  # the sum of all terms is float32
        gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        for name, wanted in renamed(reference["grads"]).items() if not number else ():
            if "prototypes" not in name:  # theirs is set to None a little later, ours is 0 from the start
                close(gradients[name], wanted, f"gradient of {name}")
        step = outcome.step.settle()
        with torch.no_grad():
            assembly.only("after_micro_batch", "dino.distill")(branches=model.branches, step=step, progress=progress)
            for gradient in gradients.values():
                gradient.mul_(min(1.0, meta["clip_grad"] / (float(gradient.norm()) + 1e-6)))
        optimizer.step()
        model.follow(float(reference["momentum"][number]))
        with torch.no_grad():
            assembly.only("after_step", "dino.distill")(branches=model.branches, step=step, progress=progress)
        close(model.state["dino/distill/center"].value, reference["centers"][number], f"center {number}")
        if number == EPOCH - 1:
            for name, wanted in renamed(reference["student_after_epoch0"]).items():
                close(online.state_dict()[name], wanted, f"{name} after an epoch", 1e-8)
    for branch, wanted in ((online, reference["student_after"]), (model.target, reference["teacher_after"])):
        for name, value in renamed(wanted).items():
            close(branch.state_dict()[name], value, f"{name} at the end", 1e-8)
