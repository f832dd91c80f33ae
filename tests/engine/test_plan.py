"""A plan's counts: to the byte where they can be counted, and what each stage takes of them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from twinview.assembly import assemble
from twinview.engine.optimizer import make_optimizer
from twinview.errors import RecipeError, TwinviewError
from twinview.model import Siamese
from twinview.planning.memory import FORWARD, Footprint, _live, measure, optimizer_bytes
from twinview.planning.noise import noise
from twinview.planning.plan import Machine, choose, memory_of, plain, plan, sent_by
from twinview.recipe import Recipe, from_table
from twinview.values import Dims

Table = dict[str, Any]
TWO_LAYERS = '''
import torch
from torch import nn
from twinview.hooks import hookimpl, part
from twinview.values import EncoderSpec, Features, Level, Traits


class Net(nn.Module):
    """Two linear layers on the mean colors of 4 x 4 cells, with a sigmoid between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 64, bias=False), nn.Linear(64, 32, bias=False)
        self.spec = EncoderSpec(pooled=32, cells=Level(32, 8))

    def forward(self, images, hidden=None):
        x = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return Features(pooled=self.second(self.first(x).sigmoid()))

    def recomputable(self):
        return []


@part
class Encoder:
    @hookimpl
    def traits(self):
        return Traits(gives=frozenset({"pooled", "recomputable"}))

    @hookimpl
    def make_encoder(self):
        return Net()


@part
class Sum:
    @hookimpl
    def loss(self, step):
        return {"sum": step.online[0].pooled.sum()}


@hookimpl
def parts():
    return {"encoder": Encoder, "sum": Sum}
'''


@pytest.fixture(autouse=True)
def torchs_own_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is made in a process of its own; ZeRO stage 3, once it has trained in this one, leaves another function behind."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)


@pytest.fixture
def two(toy: Table, install: Callable[..., None]) -> Table:
    install("layers", TWO_LAYERS)
    return {**toy, "encoder": {"use": "layers.encoder"}, "loss": [{"use": "layers.sum"}], "run": {**toy["run"], "batch_size": 64}}


def made(table: Table) -> tuple[Recipe, Footprint]:
    recipe = plain(from_table(table), gpu=True)
    return recipe, measure(recipe, assemble(recipe), gpu=True)


def test_two_layers_counted_by_hand(two: Table) -> None:
    _, found = made(two)
    assert found.online == (48 * 64, 64 * 32) == found.trained == found.target
    assert found.weights == found.gradients == 4 * (48 * 64 + 64 * 32) and found.buffers == 2 * 3 * 4  # mean and std
    view, size = 2 * 3 * 32 * 32, 4  # the batch's two views as bytes; floats
    pixels, means, middle, out = 3 * 32 * 32, 48, 64, 32
    # kept for the backward pass: the layers' inputs and the sigmoid's output; by the step: pixels of one view, what the encoder gave
    assert found.plain.saved.per_image == view + size * (pixels + means + middle + out)
    assert found.recomputed is None


def test_what_lives_is_known_to_the_byte_and_nothing_is_left(two: Table) -> None:
    recipe = plain(from_table(two), gpu=True)
    assembly = assemble(recipe)
    encoder = assembly.encoder()
    dims: Dims = assembly.dims(encoder, 10)
    model = Siamese(assembly, dims, encoder)
    _, moved = make_optimizer(assembly, model.online)
    live = _live(model, moved, noise(assembly, dims, 3))
    assert [*live.marks] == [FORWARD, "encoder.second.weight", "encoder.first.weight", "backward pass"]
    assert all(p.grad is None for p in model.parameters())
    peak, after = live.marks["encoder.second.weight"]
    assert peak >= after + 4 * 64 * 32  # its gradient was there, and is not counted after


@pytest.mark.parametrize(("options", "numbers"), [
    ({"use": "sgd", "lr": 0.1}, 1), ({"use": "sgd", "lr": 0.1, "momentum": 0.0}, 0), ({"use": "adamw", "lr": 0.1}, 2), ({"use": "lars", "lr": 0.1}, 1),
])
def test_the_optimizers_memory_is_what_it_holds_after_a_step(two: Table, options: Table, numbers: int) -> None:
    recipe = from_table({**two, "optimizer": options})
    assembly = assemble(recipe)
    encoder = assembly.encoder()
    model = Siamese(assembly, assembly.dims(encoder, 10), encoder)
    optimizer, moved = make_optimizer(assembly, model.online)
    expected = optimizer_bytes(optimizer)
    assert not optimizer.state, "asking left nothing behind"
    for p in moved.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim)
    assert expected == held == numbers * 4 * (48 * 64 + 64 * 32)


def test_each_stage_holds_its_share(two: Table) -> None:
    zero = {"reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 0}
    two = {**two, "optimizer": {"use": "adamw", "lr": 0.1}, "deepspeed": {"zero_optimization": zero}}
    recipe, found = made(two)
    weights = found.weights
    for n in (2, 8):
        shares = [memory_of(recipe, found, Machine(gpus=n, memory=2**30), stage, 4) for stage in (0, 1, 2, 3)]
        assert [m["weights, online"] for m in shares] == [weights, weights, weights, weights // n]
        assert [m["weights, target"] for m in shares] == [weights, weights, weights, weights // n]
        assert [m["optimizer"] for m in shares] == [2 * weights, *[2 * weights // n] * 3]
        assert [m.get("second copy of weights", 0) for m in shares] == [0, *[weights // n] * 3]


def test_what_is_sent(two: Table) -> None:
    two = {**two, "run": {**two["run"], "accumulation": 2}, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
    recipe, found = made(two)
    g = found.gradients
    sent = [sent_by(recipe, found, Machine(gpus=4, memory=2**30), stage) for stage in (0, 1, 2, 3)]
    part = g * 3 // 4
    assert sent[0] == {"gradients": 2 * part}  # an all-reduce
    assert sent[1] == {"gradients": 2 * part, "weights": part}  # DeepSpeed all-reduces here too, and gathers what each rank has moved
    assert sent[2] == {"gradients": 2 * 2 * part, "weights": part}  # for every micro-batch
    assert sent[3] == {"gradients": 2 * part, "weights": 2 * 2 * part}  # both branches, for every micro-batch
    assert sent_by(recipe, found, Machine(gpus=1, memory=2**30), 0) == {}


def test_an_offloaded_optimizer_is_the_hosts(two: Table) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    recipe, found = made({**two, "optimizer": {"use": "adamw", "lr": 0.1}, "deepspeed": {"zero_optimization": zero}})
    found_at = [choose(recipe, found, Machine(gpus=2, memory=2**40), stage, 4) for stage in (0, 2)]
    assert found_at[0].host == 0 and found_at[0].memory["optimizer"] == found.state
    assert found_at[1].host == (found.state + 3 * found.gradients) // 2 and "optimizer" not in found_at[1].memory


def test_the_stage_to_take(two: Table) -> None:
    roomy = plan(from_table(two), gpus=4, memory=8)
    assert roomy.take == 0 and roomy.accumulation == 1 and roomy.micro_batch == 16 and all(c.fits for c in roomy.choices)
    wide = {**two, "loss": [{"use": "toy.pooled", "channels": 2000}], "optimizer": {"use": "adamw", "lr": 0.1}}
    recipe = from_table({**wide, "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1000}}})
    totals = [c.total for c in plan(recipe, gpus=8, memory=8).choices]
    assert totals[2] < totals[1] < totals[0]
    enough = (totals[1] + totals[2]) / 2 / 0.9
    tight = plan(recipe, gpus=8, memory=enough / 2**30)
    assert tight.take == 2 and tight.advice[0].startswith("stage 2: the lowest that fits") and "the recipe says stage 0" in tight.advice
    at, most = Machine(gpus=8, memory=enough), tight.choices[2].largest
    small, large = (sum(memory_of(tight.recipe, tight.footprint, at, 2, n).values()) for n in (most, most + 1))
    assert small <= at.usable < large
    nothing = plan(from_table(two), gpus=2, memory=1e-5)
    assert nothing.take is None and nothing.accumulation is None and "no stage holds one image" in nothing.advice[0]


def test_accumulation_makes_a_batch_fit(two: Table) -> None:
    recipe = from_table({**two, "run": {**two["run"], "batch_size": 4096}})
    roomy = plan(recipe, gpus=1, memory=64)
    enough = (roomy.choices[0].total * 0.6 + 2**20) / 0.9 / 2**30
    found = plan(recipe, gpus=1, memory=enough)
    assert found.take == 0 and found.accumulation == 2 and "run.accumulation = 2" in found.advice[0]
    again = plan(attrs.evolve(recipe, run=attrs.evolve(recipe.run, accumulation=2)), gpus=1, memory=enough)
    assert again.choices[0].fits and again.micro_batch == 2048


def test_lars_stays_whole(two: Table) -> None:
    found = plan(from_table({**two, "optimizer": {"use": "lars", "lr": 0.1}}), gpus=2, memory=8)
    assert [bool(c.refused) for c in found.choices] == [False, True, True, True] and found.take == 0


def test_activation_checkpointing_is_counted(tiny: Table) -> None:
    vit = {"use": "timm.encoder", "name": "vit_tiny_patch16_224", "patch": 8, "width": 32, "depth": 6, "heads": 2}
    table = {**tiny, "encoder": vit, "views": {"use": "byol.crops", "size": 64}, "loss": [{"use": "byol.image", "hidden": 16, "channels": 8}]}
    recipe, found = made(table)
    assert found.recomputed is not None and found.recomputed.saved.per_image < found.plain.saved.per_image / 3
    less = attrs.evolve(recipe, run=attrs.evolve(recipe.run, activation_checkpointing=True))
    one, other = (memory_of(r, found, Machine(gpus=1, memory=2**40), 0, 4096)["activations"] for r in (recipe, less))
    assert other < one / 2
    assert "activation_checkpointing = true would leave" in plan(from_table(table), memory=8).advice[-1]


def test_what_is_refused(two: Table, tiny: Table) -> None:
    recipe = from_table(two)
    with pytest.raises(TwinviewError, match=r"^gpus: wants a number above 0, not 0\.$"):
        plan(recipe, gpus=0, memory=8)
    with pytest.raises(RecipeError, match=r"batch_size: 64 does not divide by 3 ranks x run.accumulation 1\. Write 63 or 66\.$"):
        plan(recipe, gpus=3, memory=8)
    with pytest.raises(RecipeError, match=r"^\[run\] activation_checkpointing: .* names no blocks of this network"):
        plan(attrs.evolve(recipe, run=attrs.evolve(recipe.run, activation_checkpointing=True)), memory=8)
    if not torch.cuda.is_available():
        with pytest.raises(TwinviewError, match=r"^memory: this machine shows no GPU"):
            plan(recipe)


def test_predictors_have_no_target(two: Table) -> None:
    _, found = made({**two, "encoder": {"use": "toy.encoder"}, "loss": [{"use": "toy.pooled"}]})
    whole = sum(p.numel() for p in nn.Conv2d(3, 8, 8).parameters()) + 8 * 4 + 4 + 4 * 4 + 4
    assert sum(found.online) == sum(found.trained) == whole and sum(found.target) == whole - 20
