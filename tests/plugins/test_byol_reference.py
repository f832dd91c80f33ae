"""BYOL against tensors of the official code: values and gradients on one and two ranks, the target's rate."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

TOLERANCE = 1e-12
TwoRanks = Callable[[Callable[[int], Any]], list[Any]]
MEAN, STD = (torch.tensor(numbers, dtype=torch.float64) for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def as_ours(state: dict[str, Any], branch: str) -> dict[str, Tensor]:
    """haiku's {module: {name: value}}, weights [in, out].  A bias in front of a norm, which the norm takes away, is left out."""
    found: dict[str, Tensor] = {}
    for head in ("projector", "predictor"):
        if branch == "online" or head == "projector":
            own = f"{branch}.heads.byol/image/{head}."
            found |= {
                own + "0.weight": state[f"{head}/linear"]["w"].T,
                own + "1.weight": state[f"{head}/batch_norm"]["scale"][0],
                own + "1.bias": state[f"{head}/batch_norm"]["offset"][0],
                own + "3.weight": state[f"{head}/linear_1"]["w"].T,
            }
    return found


def driven(net: Any, stored: dict[str, Any], step: dict[str, Any]) -> Any:
    """The model with the weights that a step starts from; the encoder is no network, its features are the image's numbers."""
    features = step["view1"].shape[2:].numel()
    loss = {"use": "byol.image", "hidden": 20, "channels": 8, "last_bias": False, "weight": 4.0}
    run = net.Driven(loss, width=[features], target={"momentum": 0.9})
    own = {**as_ours(stored["online_before"], "online"), **as_ours(stored["target_before"], "target")}
    assert not {k for k in run.model.state_dict() if not k.endswith(("running_mean", "running_var", "tracked"))} ^ own.keys()
    run.model.load_state_dict(own, strict=False)
    return run


def features(view: Tensor) -> Tensor:
    """[n, H, W, C] -> [n, H*W*C, 1, 1], normalized."""
    return ((view - MEAN) / STD).flatten(1)[..., None, None]


def first_steps(file: Path) -> dict[str, dict[str, Any]]:
    stored = torch.load(file, weights_only=True)
    return {case: stored[case] for case in ("one_rank", "two_ranks") if case in stored}


def values(step: Any) -> dict[str, Tensor]:
    projector, predictor = (step.head("byol.image", name) for name in ("projector", "predictor"))
    found = {}
    for view in (0, 1):
        found[f"projection_view{view + 1}"] = step.apply(projector, view, "online", "pooled")
        found[f"prediction_view{view + 1}"] = step.apply((projector, predictor), view, "online", "pooled")
        found[f"target_view{view + 1}"] = step.apply(projector, view, "target", "pooled")
    return found


@pytest.mark.parametrize("case", ["one_rank", "two_ranks"])
def test_a_step_of_the_official_code(case: str, net: Any, tensors: Callable[[str], Any]) -> None:
    """Both ranks' images are one batch here: BatchNorm is over both there.  The release's loss is 4 - 4 times the mean cosine."""
    stored = tensors("byol")[case]
    expected = stored["steps"][0]
    run = driven(net, stored, expected)
    step = run.step(*(features(expected[view].flatten(0, 1)) for view in ("view1", "view2")))
    loss = 4 + 4 * run.loss(step)
    loss.backward()
    net.agree("loss", {"": loss}, {"": expected["logs"]["repr_loss"]}, TOLERANCE)
    known = {k: v.flatten(0, 1) for k, v in expected["online"].items() if "logits" not in k}
    known |= {k.replace("projection", "target"): v.flatten(0, 1) for k, v in expected["target"].items()}
    net.agree("values", values(step), known, TOLERANCE)
    net.agree("gradients", run.grads(), as_ours(expected["grads_mean"], "online"), TOLERANCE)


def on_a_rank(rank: int) -> dict[str, Any]:
    """Synchronized BatchNorm over two real ranks, gradients averaged."""
    from twinview.ops.sync_batchnorm import synchronize_batchnorm

    net = importlib.import_module("twinview_reference")
    stored = first_steps(Path(__file__).with_name("fixtures") / "baselines" / "byol.pt")["two_ranks"]
    expected = stored["steps"][0]
    run = driven(net, stored, expected)
    synchronize_batchnorm(run.model)
    loss = 4 + 4 * run.loss(run.step(features(expected["view1"][rank]), features(expected["view2"][rank])))
    loss.backward()
    mean = loss.detach().clone()
    for value in (mean, *run.grads().values()):
        dist.all_reduce(value)
        value /= 2
    return {"loss": mean, "grads": run.grads()}


def test_two_ranks(net: Any, two_ranks: TwoRanks) -> None:
    expected = first_steps(Path(__file__).with_name("fixtures") / "baselines" / "byol.pt")["two_ranks"]["steps"][0]
    for found in two_ranks(on_a_rank):
        net.agree("loss", {"": found["loss"]}, {"": expected["logs"]["repr_loss"]}, TOLERANCE)
        net.agree("gradients", found["grads"], as_ours(expected["grads_mean"], "online"), TOLERANCE)


def test_the_loss_of_vectors(tensors: Callable[[str], Any]) -> None:
    from twinview.ops import cosine

    stored = tensors("byol")["regression_loss"]
    found = 2 - 2 * cosine(stored["prediction"], stored["target"])
    assert float((found - stored["loss_per_sample"]).abs().max()) < TOLERANCE


def test_the_targets_rate_and_the_learning_rate(tensors: Callable[[str], Any]) -> None:
    from twinview.engine.schedule import lr_factor, momentum_at
    from twinview.recipe.tables import Schedule, Target

    stored = tensors("byol")["schedules"]
    known = stored["constants"]
    peak = known["base_lr"] * known["batch"] / 256
    for step, ema, lr in zip(stored["step"].tolist(), stored["ema"].tolist(), stored["lr"].tolist(), strict=True):
        share = step / known["steps"]
        assert momentum_at(Target(momentum=known["base_ema"]), share) == pytest.approx(ema, abs=1e-12)
        assert peak * lr_factor(Schedule(), share, known["warmup"] / known["steps"]) == pytest.approx(lr, abs=1e-6 * peak)
