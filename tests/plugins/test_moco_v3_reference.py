"""MoCo v3 against tensors of the official code: ResNet's heads and ViT's, one and two ranks, the whole vision transformer, schedules."""
from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

TOLERANCE = 1e-10
TwoRanks = Callable[[Callable[[int], Any]], list[Any]]
HEADS = ("fc.", "head.")  # what the official code calls the projector, on a ResNet and on a ViT


def names() -> dict[str, str]:
    found = {"predictor.": "online.heads.moco_v3/image/predictor."}
    for theirs, branch in (("base_encoder.", "online."), ("momentum_encoder.", "target.")):
        found |= {theirs: f"{branch}encoder.", **{theirs + head: f"{branch}heads.moco_v3/image/projector." for head in HEADS}}
    return found


def loss_of(meta: dict[str, Any], transformer: bool) -> dict[str, Any]:
    """The release sums the two directions."""
    table = {"use": "moco_v3.image", "channels": meta["dim"], "hidden": meta["mlp_dim"], "temperature": meta["T"], "weight": 2.0}
    return {**table, **({"projector_layers": 3, "predictor_norm": True} if transformer else {})}


def driven(net: Any, meta: dict[str, Any], transformer: bool) -> Any:
    optimizer = {"use": "adamw", "lr": 1e-3, "weight_decay": 0.1, "decay_norm_bias": True} if transformer else {"use": "lars", "lr": 0.5, "weight_decay": 0.01}
    target = {"momentum": meta["m"], "schedule": "constant", "update": "before_forward"}
    return net.Driven(loss_of(meta, transformer), optimizer=optimizer, target=target, batch=meta["B"])


def values(run: Any, step: Any) -> dict[str, Tensor]:
    projector, predictor = (step.head("moco_v3.image", name) for name in ("projector", "predictor"))
    found: dict[str, Tensor] = {}
    for view in (0, 1):
        found |= {
            f"h{view + 1}": step.online[view].pooled,
            f"z{view + 1}": step.apply(projector, view, "online", "pooled"),
            f"q{view + 1}": step.apply((projector, predictor), view, "online", "pooled"),
            f"k{view + 1}": step.apply(projector, view, "target", "pooled"),
        }
    return found


@pytest.mark.parametrize("case", ["resnet", "vit"])
def test_steps_of_the_official_code(case: str, net: Any, tensors: Callable[[str], Any]) -> None:
    stored = tensors("moco_v3")
    meta, stored = stored["meta"][case], stored[case]
    run = driven(net, meta, case == "vit")
    run.load(stored["state_before"], names())
    for expected in stored["steps"]:
        run.model.follow(meta["m"])
        step = run.step(expected["x1"], expected["x2"])
        loss = 2 * run.loss(step)
        run.optimizer.zero_grad()
        loss.backward()
        found = {**values(run, step), "loss": loss}
        net.agree("values", found, {k: expected[k] for k in found}, TOLERANCE)
        if "grads" in expected:
            net.agree("gradients", run.grads(), net.renamed(expected["grads"], names()), TOLERANCE)
            after = net.renamed(expected["state_after_forward"], names())
            net.agree("weights and statistics after the forward pass", run.model.state_dict(), after, TOLERANCE)
        run.optimizer.step()
    if "state_final" in stored:
        net.agree("all after the last step", run.model.state_dict(), net.renamed(stored["state_final"], names()), TOLERANCE)


def on_a_rank(rank: int) -> dict[str, dict[str, Any]]:
    """Losses of every step and final weights; BatchNorm of each rank for itself, gradients averaged."""
    net, found = importlib.import_module("twinview_reference"), {}
    file = torch.load(Path(__file__).resolve().parents[3] / "shared" / "reference" / "baselines" / "moco_v3.pt", weights_only=True)
    for case in ("resnet_two_ranks", "vit_two_ranks"):
        meta, stored = file["meta"][case], file[case][f"rank{rank}"]
        run = driven(net, meta, case.startswith("vit"))
        run.load(stored["state_before"], names())
        losses: list[Tensor] = []
        first: dict[str, Tensor] = {}
        for expected in stored["steps"]:
            run.model.follow(meta["m"])
            loss = 2 * run.loss(run.step(expected["x1"], expected["x2"]))
            run.optimizer.zero_grad()
            loss.backward()
            for gradient in run.grads().values():
                dist.all_reduce(gradient)
                gradient /= 2
            first = first or {k: v.clone() for k, v in run.grads().items()}
            run.optimizer.step()
            losses.append(loss.detach())
        found[case] = {"losses": torch.stack(losses), "grads": first, "state": dict(run.model.state_dict())}
    return found


def test_two_ranks(net: Any, two_ranks: TwoRanks, shared: Path) -> None:
    file = torch.load(shared / "reference" / "baselines" / "moco_v3.pt", weights_only=True)
    for rank, found in enumerate(two_ranks(on_a_rank)):
        for case, given in found.items():
            stored = file[case][f"rank{rank}"]
            net.agree("losses", {"": given["losses"]}, {"": torch.stack([s["loss"] for s in stored["steps"]])}, TOLERANCE)
            net.agree("gradients", given["grads"], net.renamed(stored["steps"][0]["grads"], names()), TOLERANCE)
            net.agree("all after the last step", given["state"], net.renamed(stored["state_final"], names()), TOLERANCE)


def vit(net: Any, stored: dict[str, Any]) -> Any:
    """timm.encoder as the recipes have it, with the official table of positions: it runs column by column, its patches row by row.

    The target averages the fixed table there, in float32: in its last bits it is another.
    """
    meta = stored["meta"]["constants"]
    encoder = {
        "use": "timm.encoder", "name": "vit_small_patch16_224", "patch": meta["patch"], "width": meta["width"], "depth": meta["depth"], "heads": meta["heads"],
        "positions": "sine_row", "pooled": "token", "init": "moco_v3", "frozen_patch_embed": True,
    }  # fmt: skip
    run = net.Driven(loss_of(meta, True), batch=meta["B"], encoder=encoder, views={"use": "reference.views", "size": 24}, target={"momentum": meta["m"], "update": "before_forward"})
    for branch, state, name in (("online", "state_before", "base"), ("target", "momentum_after", "momentum")):
        table = stored[state][f"{name}_encoder.pos_embed"][0]
        getattr(run.model, branch).encoder.positions = lambda grid, device, table=table: (table[:1], table[1:])
    return run


def without_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("pos_embed")}


def test_the_whole_vision_transformer(net: Any, tensors: Callable[[str], Any]) -> None:
    stored = tensors("moco_v3_vit")
    run = vit(net, stored)
    run.load(without_positions(stored["state_before"]), names())
    run.model.follow(stored["meta"]["constants"]["m"])
    step = run.step(stored["x1"], stored["x2"])
    loss = 2 * run.loss(step)
    loss.backward()
    found = {**values(run, step), "loss": loss, "tokens1": step.online[0].tokens}
    net.agree("values", found, {k: stored[k] for k in found}, 1e-11)
    if "grads" in stored:
        grads = net.renamed(stored["grads"], names())
        assert run.grads().keys() == grads.keys()  # the patch embedding is frozen
        net.agree("gradients", run.grads(), grads, 1e-11)
        net.agree("the target", run.model.state_dict(), net.renamed(without_positions(stored["momentum_after"]), names()), 1e-11)


def test_the_random_start_has_the_official_bounds(net: Any, tensors: Callable[[str], Any]) -> None:
    """Largest magnitude of every tensor: of uniform draws it lies just below the bound."""
    stored = tensors("moco_v3_vit")
    start = {k.removeprefix("online.encoder."): v for k, v in vit(net, stored).model.state_dict().items() if k.startswith("online.encoder.")}
    for name, (most, spread) in stored["init_max_and_std"].items():
        if name in start and "head" not in name:
            assert float(start[name].abs().max()) == pytest.approx(most, rel=0.6 if name == "cls_token" else 0.03, abs=1e-12), name
            if start[name].numel() > 1:
                assert float(start[name].std()) == pytest.approx(spread, rel=0.5 if name == "cls_token" else 0.08, abs=1e-12), name


def test_positions_are_the_official_ones_on_a_square_grid() -> None:
    """On one that is not square theirs are not the places of the patches, so that ours differ on purpose."""
    from twinview.ops.sines import sine_table

    file = Path(__file__).with_name("fixtures") / "baselines" / "moco_v3_vit.pt"
    table = torch.load(file, weights_only=True)["pos_embed"]["grid3x3_dim16"][0]
    assert float((sine_table((3, 3), 16, row_first=True) - table[1:]).abs().max()) < 1e-6 and not table[0].any()


def test_schedules(tensors: Callable[[str], Any]) -> None:
    from twinview.engine.schedule import lr_factor, momentum_at
    from twinview.recipe.tables import Schedule, Target

    stored = tensors("moco_v3")["schedule"]
    constants = stored["constants"]
    warmup = constants["warmup_epochs"] / constants["epochs"]
    for epoch, lr, momentum in zip(stored["epoch"].tolist(), stored["lr"].tolist(), stored["momentum"].tolist(), strict=True):
        share = epoch / constants["epochs"]
        assert constants["lr"] * lr_factor(Schedule(), share, warmup) == pytest.approx(lr, abs=1e-10)
        assert momentum_at(Target(momentum=constants["m"]), share) == pytest.approx(momentum, abs=1e-10)
    assert math.isclose(momentum_at(Target(momentum=0.99), 1.0), 1.0)
