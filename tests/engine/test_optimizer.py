from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.assembly import assemble
from twinview.engine.deepspeed_config import check_recipe
from twinview.engine.optimizer import gradient_norm, load_optimizer_state, make_optimizer, optimizer_state, set_rates
from twinview.engine.schedule import lr_factor, momentum_at, warmup_share
from twinview.errors import RecipeError
from twinview.recipe import from_table
from twinview.recipe.tables import Schedule, Target

Table = dict[str, Any]
LARS = {"use": "lars", "lr": 0.5, "momentum": 0.9, "trust": 0.01}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)
        self.predictor = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.predictor(self.norm(self.layer(x)))
        return out


def lars_by_hand(p: Tensor, g: Tensor, buffer: Tensor, decay: float, adapt: bool) -> None:
    """One parameter's step, as You et al. 2017 write it: momentum over the locally scaled, decayed gradient."""
    ratio = 1.0
    if adapt:
        w, n = p.norm().item(), g.norm().item()
        ratio = 0.01 * w / (n + decay * w + 1e-8)
    buffer.mul_(0.9).add_((g + decay * p) * ratio)
    p.sub_(0.5 * buffer)


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("norm_bias", [False, True])
def test_lars_adapts_weights_and_leaves_biases_and_norms(tiny: Table, decay: float, norm_bias: bool) -> None:
    table = {**tiny, "optimizer": {**LARS, "weight_decay": decay, "decay_norm_bias": norm_bias}}
    model = Small()
    optimizer, moved = make_optimizer(assemble(from_table(table)), model)
    expected = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in moved.items()}
    for step in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        for name, (p, buffer) in expected.items():
            grad = moved[name].grad
            assert grad is not None
            whole = p.ndim > 1 or norm_bias
            # BatchNorm's bias starts at 0, where the published rule is the plain step
            lars_by_hand(p, grad, buffer, decay * whole, whole and bool(p.norm() > 0) and bool(grad.norm() > 0))
    for name, (p, _) in expected.items():
        torch.testing.assert_close(moved[name].detach(), p, rtol=1e-5, atol=1e-7)


def test_biases_and_norms_are_not_decayed_unless_asked(tiny: Table) -> None:
    assembly = assemble(from_table(tiny))
    optimizer, moved = make_optimizer(assembly, Small())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in moved.items() if decays[id(p)] == 0.1} == {"layer.weight", "predictor.weight"}
    assert len(optimizer.param_groups) == 2


def test_a_part_says_how_a_parameter_is_treated(tiny: Table) -> None:
    assembly = assemble(from_table({**tiny, "extra": [{"use": "tiny.rules"}]}))
    model = Small()
    model.add_module("body", nn.Sequential(nn.Linear(2, 2)))
    optimizer, moved = make_optimizer(assembly, model)
    assert "body.0.weight" not in moved and not model.get_parameter("body.0.weight").requires_grad
    set_rates(optimizer, peak=0.01, factor=0.25)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(moved["predictor.weight"])] == (0.02, 0.0)  # twice the peak, whatever the schedule says
    assert rates[id(moved["layer.weight"])] == (0.0025, 0.1)


@pytest.mark.parametrize("spec", [{"use": "sgd", "lr": 0.1}, {"use": "adamw", "lr": 0.1}, {**LARS}], ids=lambda s: s["use"])
def test_what_an_optimizer_remembers_goes_by_name(tiny: Table, spec: Table) -> None:
    assembly = assemble(from_table({**tiny, "optimizer": spec}))

    def stepped(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    one, other = Small(), Small()
    (o1, m1), (o2, m2) = make_optimizer(assembly, one), make_optimizer(assembly, other)
    stepped(one, o1, range(3))
    other.load_state_dict(one.state_dict())
    load_optimizer_state(o2, m2, copy.deepcopy(optimizer_state(o1, m1)))
    stepped(one, o1, range(3, 5))
    stepped(other, o2, range(3, 5))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(KeyError):
        load_optimizer_state(o2, m2, {"nothing.weight": {}})


def test_the_schedule_rises_linearly_and_falls_as_a_cosine() -> None:
    schedule = Schedule(final=0.1)
    assert [lr_factor(schedule, share, 0.2) for share in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0, 0.25, 0.5, 1.0])
    assert lr_factor(schedule, 0.6, 0.2) == pytest.approx(0.55) and lr_factor(schedule, 1.0, 0.2) == pytest.approx(0.1)
    assert lr_factor(schedule, 0.4, 0.2) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert [lr_factor(Schedule(use="constant"), share, 0.5) for share in (0.0, 0.25, 0.5, 1.0)] == [0, 0.5, 1, 1]
    assert lr_factor(Schedule(), 1.0, 1.0) == 1.0


def test_warm_up_is_given_in_steps_epochs_or_as_a_share(tiny: Table) -> None:
    for given, expected in (({"warmup_steps": 3}, 0.25), ({"warmup_epochs": 1.2}, 0.5), ({"warmup_share": 0.1}, 0.1), ({}, 0.0)):
        assert warmup_share(from_table({**tiny, "schedule": given}), 12, 5) == pytest.approx(expected)
    run = {k: v for k, v in tiny["run"].items() if k != "steps"}
    with pytest.raises(RecipeError, match=r"^\[schedule\] warmup_epochs: a run of run\.hours does not know its steps\. Write warmup_share\.$"):
        check_recipe(from_table({**tiny, "run": {**run, "hours": 2.0}, "schedule": {"warmup_epochs": 1}}))


def test_momentum_goes_from_its_start_to_one() -> None:
    target = Target(momentum=0.996)
    assert momentum_at(target, 0) == pytest.approx(0.996) and momentum_at(target, 1) == 1
    assert momentum_at(target, 0.5) == pytest.approx(0.998)
    assert momentum_at(Target(momentum=0.99, schedule="constant"), 0.9) == 0.99


def test_the_gradient_norm_is_global(install: Callable[..., None]) -> None:
    model = Small()
    assert gradient_norm(model.parameters()) == 0
    model(torch.randn(8, 6)).square().mean().backward()
    assert gradient_norm(model.parameters()) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)), rel=1e-6)
