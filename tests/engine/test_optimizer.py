from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinview.assembly import assemble
from twinview.engine.clip import clip_each
from twinview.engine.deepspeed_config import check_recipe
from twinview.engine.optimizer import gradient_norm, load_optimizer_state, make_optimizer, optimizer_state, set_rates
from twinview.engine.schedule import decay_at, lr_factor, momentum_at, unreached, warmup_share
from twinview.errors import RecipeError
from twinview.ops.lars import LARS as Lars
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
    """One parameter's step, as the releases have it: momentum over the locally scaled, decayed gradient."""
    g = g + decay * p
    ratio = 0.01 * p.norm().item() / g.norm().item() if adapt else 1.0
    buffer.mul_(0.9).add_(g * ratio)
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


@pytest.mark.parametrize("release", ["simclr", "byol"])
def test_lars_is_that_of_the_releases(release: str) -> None:
    """Three steps with a learning rate that falls; tensors made with the official code."""
    found = torch.load(Path(__file__).parent / "fixtures" / "lars.pt", weights_only=True)[release]
    parameters = [nn.Parameter(p.clone()) for p in found["before"]]
    plain = [any(word in name for word in ("bias", "batch_norm", "head_supervised")) or name.endswith("/b") for name in found["names"]]
    assert {True, False} == set(plain)
    groups = [{"params": [p], "weight_decay": 0.0 if out else found["decay"], "adapt": not out} for p, out in zip(parameters, plain, strict=True)]
    optimizer = Lars(groups, 0.0, momentum=0.9, trust=0.001, eps=0.0, nesterov=False, lr_inside=release == "simclr")
    for lr, grads, after in zip(found["lr"], found["grads"], found["after"], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        assert max(float((p.detach() - q).abs().max()) for p, q in zip(parameters, after, strict=True)) < 1e-7


@pytest.mark.parametrize("falls", [1.0, 0.5])
def test_where_lars_puts_the_rate_matters_while_it_falls(falls: float) -> None:
    def trained(*, nesterov: bool = False, lr_inside: bool = False) -> Tensor:
        p = nn.Parameter(torch.arange(1.0, 13.0).view(3, 4))
        optimizer = Lars([{"params": [p], "weight_decay": 0.1, "adapt": True}], 1.0, momentum=0.9, trust=0.1, eps=0.0, nesterov=nesterov, lr_inside=lr_inside)
        for step in range(4):
            optimizer.param_groups[0]["lr"] = falls**step
            p.grad = torch.ones(3, 4)
            optimizer.step()
        return p.detach()

    assert torch.allclose(trained(), trained(lr_inside=True)) == (falls == 1.0)
    assert not torch.allclose(trained(), trained(nesterov=True))


def test_biases_and_norms_are_not_decayed_unless_asked(tiny: Table) -> None:
    assembly = assemble(from_table(tiny))
    optimizer, moved = make_optimizer(assembly, Small())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in moved.items() if decays[id(p)] == 0.1} == {"layer.weight", "predictor.weight"}
    assert len(optimizer.param_groups) == 2


def test_a_part_says_how_a_parameter_is_treated(tiny: Table) -> None:
    assembly = assemble(from_table({**tiny, "extra": [{"use": "smallnet.rules"}]}))
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


def test_the_schedule_moves_once_an_epoch_or_steps_down() -> None:
    """MoCo-v2's 200 epochs by the cosine, MoCo's by 0.1 after 120 and 160; ten steps an epoch."""
    by_epoch, down = Schedule(grain="epoch"), Schedule(use="multistep", milestones=[120, 160])
    for step in (0, 7, 1999, 1234):
        epoch = step // 10
        assert lr_factor(by_epoch, step / 2000, 0.0, epoch, 1 / 200) == pytest.approx(0.5 * (1 + math.cos(math.pi * epoch / 200)))
        assert lr_factor(down, step / 2000, 0.0, epoch, 1 / 200) == pytest.approx(1.0 if epoch < 120 else 0.1 if epoch < 160 else 0.01)
    within = Schedule(use="multistep", milestones=[16.4])  # COCO's, in steps where it was published
    assert [lr_factor(within, step / 240, 0.0, step // 10, 1 / 24) for step in (160, 163, 164, 239)] == pytest.approx([1.0, 1.0, 0.1, 0.1])
    warm = Schedule(grain="epoch", start=0.1)
    assert [lr_factor(warm, share, 0.1, 0, 0.05) for share in (0.0, 0.05, 0.1)] == pytest.approx([0.1, 0.55, 1.0])  # the warm-up by the step


def test_the_schedule_falls_by_a_power_of_what_is_left() -> None:
    """mmsegmentation's poly: (lr - least) (1 - t / T)^power + least."""
    poly, line = Schedule(use="poly", final=0.01), Schedule(use="poly", power=1.0)
    for share in (0.0, 0.3, 0.9999, 1.0):
        assert 0.01 * lr_factor(poly, share, 0.0) == pytest.approx((0.01 - 1e-4) * (1 - share) ** 0.9 + 1e-4)
        assert lr_factor(line, share, 0.0) == pytest.approx(1 - share)
    assert [lr_factor(line, share, 0.2) for share in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert lr_factor(poly, 1.0 + 1e-12, 0.0) == pytest.approx(0.01)  # never a complex number


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"use": "multistep"}, 'milestones and use = "multistep" go together. Write both, for example milestones = [120, 160], or none'),
        ({"milestones": [3]}, 'milestones and use = "multistep" go together.'),
        ({"use": "multistep", "milestones": [3, 2]}, "milestones: want numbers that rise, not [3.0, 2.0]"),
        ({"use": "constant", "final": 0.1}, 'final is of use = "cosine" or "poly". Leave it out'),
        ({"power": 2.0}, 'power is of use = "poly". Leave it out'),
        ({"use": "poly", "grain": "epoch"}, 'grain is of use = "cosine". Leave it out'),
        ({"use": "constant", "grain": "epoch"}, 'grain is of use = "cosine". Leave it out'),
    ],
    ids=str,
)
def test_keys_of_a_schedule_that_do_nothing_are_refused(tiny: Table, table: Table, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        from_table({**tiny, "schedule": table})
    assert said in str(error.value)


def test_what_the_engine_refuses_of_rates(tiny: Table) -> None:
    hours = {**{k: v for k, v in tiny["run"].items() if k != "steps"}, "hours": 1.0}
    with pytest.raises(RecipeError, match=r"^\[schedule\] grain: a run of run\.hours does not know how many epochs it takes\. Write grain = \"step\"\.$"):
        check_recipe(from_table({**tiny, "run": hours, "schedule": {"grain": "epoch"}}))
    with pytest.raises(RecipeError, match=r"^\[optimizer\] clip: run\.clip_gradients clips the same gradients, all together\. Write one of the two\.$"):
        check_recipe(from_table({**tiny, "run": {**tiny["run"], "clip_gradients": 1.0}, "optimizer": {**tiny["optimizer"], "clip": 3.0}}))


def test_the_decay_goes_from_its_start_to_its_end_where_the_recipe_says_it(tiny: Table) -> None:
    """DINO: 0.04 to 0.4, and 0 on biases and norms; a part's own decay stays."""
    assembly = assemble(from_table({**tiny, "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 0.04, "weight_decay_end": 0.4}, "extra": [{"use": "smallnet.rules"}]}))
    optimizer, trainable = make_optimizer(assembly, Small())
    spec = assembly.recipe.optimizer
    assert [decay_at(spec, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])
    assert decay_at(from_table(tiny).optimizer, 0.5) is None
    set_rates(optimizer, 0.01, 1.0, decay_at(spec, 0.5))
    decays = {name: group["weight_decay"] for name, p in trainable.items() for group in optimizer.param_groups if any(p is q for q in group["params"])}
    assert decays["layer.weight"] == pytest.approx(0.22) and decays["layer.bias"] == decays["norm.weight"] == decays["predictor.weight"] == 0.0


def test_each_gradient_is_clipped_by_itself_as_dino_does(tiny: Table) -> None:
    model = Small()
    optimizer, trainable = make_optimizer(assemble(from_table({**tiny, "optimizer": {"use": "sgd", "lr": 1.0, "momentum": 0.0}})), model)
    clip_each(NoZero(), optimizer, trainable, 0.05)
    model(torch.randn(8, 6)).square().mean().backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in trainable.items() if p.grad is not None}
    set_rates(optimizer, 1.0, 1.0)
    optimizer.step()
    assert {bool(g.norm() > 0.05) for _, g in before.values()} == {True, False}
    for name, (p, g) in before.items():
        torch.testing.assert_close(trainable[name].detach(), p - g * min(1.0, 0.05 / (float(g.norm()) + 1e-6)))


class NoZero:
    """An engine of stage 0."""

    def zero_optimization(self) -> bool:
        return False


def test_warm_up_is_given_in_steps_epochs_or_as_a_share(tiny: Table) -> None:
    for given, expected in (({"warmup_steps": 3}, 0.25), ({"warmup_epochs": 1.2}, 0.5), ({"warmup_share": 0.1}, 0.1), ({}, 0.0)):
        assert warmup_share(from_table({**tiny, "schedule": given}), 12, 5) == pytest.approx(expected)
    run = {k: v for k, v in tiny["run"].items() if k != "steps"}
    with pytest.raises(RecipeError, match=r"^\[schedule\] warmup_epochs: a run of run\.hours does not know its steps\. Write warmup_share\.$"):
        check_recipe(from_table({**tiny, "run": {**run, "hours": 2.0}, "schedule": {"warmup_epochs": 1}}))


UNREACHED: list[tuple[Table, Table, tuple[int, int], str]] = [
    ({"steps": 2}, {"warmup_steps": 100}, (0, 0), "[schedule] warmup_steps = 100: the run has 2 steps, and its learning rate never reaches the peak. Write less, or train longer."),
    ({"epochs": 5}, {"warmup_epochs": 10}, (0, 0), "[schedule] warmup_epochs = 10: the run has 5 epochs, and its learning rate"),
    ({"steps": 20}, {"warmup_epochs": 10}, (20, 5), "[schedule] warmup_epochs = 10: the run has 4 epochs"),
    ({"epochs": 2}, {"warmup_steps": 8}, (6, 3), "[schedule] warmup_steps = 8: the run has 6 steps"),
    ({"hours": 1}, {"warmup_share": 1.0}, (0, 3), "[schedule] warmup_share = 1: the run has 1 as its whole"),
    ({"epochs": 100}, {"use": "multistep", "milestones": [60, 120, 160]}, (0, 0), "[schedule] milestones: the run ends after 100 epochs, and never comes to 120, 160."),
    ({"steps": 20}, {"use": "multistep", "milestones": [2, 4]}, (20, 5), "[schedule] milestones: the run ends after 4 epochs, and never comes to 4."),
    ({"steps": 20}, {"use": "multistep", "milestones": [2, 4]}, (20, 4), ""),
    ({"steps": 20}, {"warmup_epochs": 3}, (20, 5), ""),
    ({"epochs": 2}, {"warmup_steps": 8}, (0, 0), ""),
]


@pytest.mark.parametrize(("run", "schedule", "known", "said"), UNREACHED)
def test_what_a_run_never_comes_to_is_said(tiny: Table, run: Table, schedule: Table, known: tuple[int, int], said: str) -> None:
    table = {**tiny, "run": {**{k: v for k, v in tiny["run"].items() if k != "steps"}, **run}, "schedule": schedule}
    found = list(unreached(from_table(table), *known))
    assert len(found) == bool(said) and all(line.startswith(said) for line in found)


def test_losses_without_any_weight_are_said(tiny: Table) -> None:
    weightless = [{**loss, "weight": 0} for loss in tiny["loss"]]
    (line,) = unreached(from_table({**tiny, "loss": weightless}))
    assert line.startswith("[[loss]] weight: is 0 in every loss") and not [*unreached(from_table(tiny))]


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
