"""PixPro against tensors of the official code, and what it does with masks, pairs and views of other methods."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops import cosine_pairs
from twinview.values import Features, Geometry
from twinview_pixpro import Instance, Pixels
from twinview_pixpro import pixels as pixels_module
from twinview_pixpro.pairs import near, pixel_bounds

PAIRS = ((0, 1), (1, 0))


class Tiny(nn.Module):
    """The encoder that the reference was made with: two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 10, 3, 1, 1, bias=False), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


NAMES = {"linear1": "0", "bn1": "1", "linear2": "3"}  # of the release's heads -> places in ours

OFFICIAL = {place: name for name, place in NAMES.items()}


def ours(state: dict[str, Tensor], official: str) -> dict[str, Tensor]:
    """A head's state under our names.  The bias in front of a BatchNorm is not there: the running mean is taken less by it."""
    found = {}
    for key, value in state.items():
        layer, _, rest = key.removeprefix(f"{official}.").partition(".")
        if key.startswith(f"{official}.") and layer in NAMES and (layer, rest) != ("linear1", "bias"):
            found[f"{NAMES[layer]}.{rest}"] = value - state[f"{official}.linear1.bias"] if rest == "running_mean" else value
    return found


class Net:
    """Both branches of the reference, in float64."""

    def __init__(self, case: dict[str, Any], transform: int = 1, gamma: float = 2.0) -> None:
        self.part, self.instance = Pixels(channels=12, hidden=20, transform=transform, gamma=gamma), Instance(channels=12, hidden=20)
        dims: Any = type("D", (), {"width": lambda self, on: 10})()
        made = {**{k: h.module for k, h in self.part.heads(dims).items()}, **{f"instance {k}": h.module for k, h in self.instance.heads(dims).items()}}
        self.heads = {k: m.double() for k, m in made.items()}
        self.averaged = {k: m.double() for k, m in (("projector", self.part.heads(dims)["projector"].module), ("instance projector", self.instance.heads(dims)["projector"].module))}
        self.online, self.target = Tiny().double(), Tiny().double()
        state = case["state_before"]
        self.has_instance = "projector_instance.linear1.weight" in state
        for module, name in ((self.online, "encoder"), (self.target, "encoder_k")):
            module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")})
        for head, name in self.mapped():
            if name == "value_transform" and transform == 1:
                head.load_state_dict({f"0.{k}": state[f"value_transform.{k}"] for k in ("weight", "bias")})
            else:
                head.load_state_dict(ours(state, name))

    def mapped(self) -> list[tuple[nn.Module, str]]:
        found = [(self.heads["projector"], "projector"), (self.averaged["projector"], "projector_k")]
        if "values" in self.heads:
            found.append((self.heads["values"], "value_transform"))
        if self.has_instance:
            found += [(self.heads["instance projector"], "projector_instance"), (self.averaged["instance projector"], "projector_instance_k"),
                      (self.heads["instance predictor"], "predictor")]
        return found

    def follow(self, momentum: float) -> None:
        both = [(self.target, self.online), *((self.averaged[k], self.heads[k]) for k in self.averaged)]
        with torch.no_grad():
            for target, online in both:
                for t, o in zip(target.parameters(), online.parameters()):
                    t.mul_(momentum).add_(o, alpha=1 - momentum)

    def loss(self, hand_step: Any, step: dict[str, Any]) -> tuple[Tensor, list[Tensor], Any]:
        maps = [self.online(step["im_1"]), self.online(step["im_2"])]
        for m in maps:
            m.retain_grad()
        with torch.no_grad():
            targets = [self.target(step["im_1"]), self.target(step["im_2"])]
        made = hand_step([Features(cells=m) for m in maps], [Features(cells=m) for m in targets], {k: m for k, m in self.heads.items() if " " not in k}, self.averaged, PAIRS)
        made.bounds = (step["coord1"], step["coord2"])
        loss = 4 * self.part.loss(made)["pixels"]
        if self.has_instance:
            own = {k.removeprefix("instance "): m for k, m in self.heads.items() if " " in k}
            other = {"projector": self.averaged["instance projector"]}
            loss = loss + 4 * self.instance.loss(hand_step(made.online, made.target, own, other, PAIRS))["instance"]
        return loss, maps, made


@pytest.fixture
def given_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates as the reference gives them, in place of those of a geometry."""
    monkeypatch.setattr(pixels_module, "pixel_bounds", lambda geometry, view: geometry[view])
    monkeypatch.setattr(Pixels, "_positives", _given(Pixels._positives))


def _given(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def positives(self: Pixels, step: Any, *rest: Any) -> Tensor:
        step.geometry = step.bounds
        return original(self, step, *rest)

    return positives


def lars(net: Net, buffers: dict[int, Tensor], lr: float = 0.5, decay: float = 0.01) -> None:
    """As the release has it: the norm of gradient and decay together; neither decay nor adaptation for biases and norms."""
    modules = [net.online, *net.heads.values()]
    with torch.no_grad():
        for p, grad in ((p, p.grad) for m in modules for p in m.parameters()):
            if grad is None:
                continue
            if p.ndim > 1:
                grad = grad + decay * p
                if p.norm() > 0 and grad.norm() > 0:
                    grad = grad * (0.001 * p.norm() / (grad.norm() + 1e-8))
            buffers[id(p)] = 0.9 * buffers[id(p)] + grad if id(p) in buffers else grad
            p.sub_(buffers[id(p)], alpha=lr)


def check_gradients(net: Net, expected: dict[str, Tensor], tolerance: float) -> None:
    for key, parameter in net.online.named_parameters():
        assert parameter.grad is not None and (parameter.grad - expected[f"encoder.{key}"]).abs().max() < tolerance, key
    for module, name in net.mapped():
        if not name.endswith("_k"):
            for key, parameter in module.named_parameters():
                official = key.replace("0.", "", 1) if name == "value_transform" and len(list(module.children())) == 1 else f"{OFFICIAL[key[0]]}.{key[2:]}"
                assert parameter.grad is not None and (parameter.grad - expected[f"{name}.{official}"]).abs().max() < tolerance, (name, key)


def check_state(net: Net, expected: dict[str, Tensor], tolerance: float) -> None:
    for module, name in ((net.online, "encoder"), (net.target, "encoder_k")):
        for key, value in module.state_dict().items():
            assert (value - expected[f"{name}.{key}"]).abs().max() < tolerance, (name, key)
    for head, name in net.mapped():
        if name == "value_transform":
            continue
        for key, value in ours(expected, name).items():
            if name.endswith("_k") and "running_mean" in key:
                continue  # the averaged bias that we have not moves under it
            assert (head.state_dict()[key] - value).abs().max() < tolerance, (name, key)


def check_steps(case: dict[str, Any], hand_step: Any, transform: int = 1, gamma: float = 2.0) -> None:
    net, buffers = Net(case, transform, gamma), dict[int, Tensor]()
    for number, step in enumerate(case["steps"]):
        net.follow(float(step["momentum"]))
        loss, maps, made = net.loss(hand_step, step)
        for module in (net.online, *net.heads.values()):
            module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert abs(float(loss.detach() - step["loss"])) < 1e-12
        if "proj_1" in step:
            assert (made.made[(("projector",), 0, "online", "cells")] - step["proj_1"]).abs().max() < 1e-12
            assert (made.made[(("projector",), 1, "target", "cells")] - step["target_2"]).abs().max() < 1e-12
            y = net.part.propagate(net.heads.get("values"), step["proj_1"])
            assert (y - step["ppm_1"]).abs().max() < 1e-12
        if number == 0:
            assert maps[0].grad is not None and (maps[0].grad - step["grad_feat_1"]).abs().max() < 1e-12
            check_gradients(net, step["grads"], 1e-12)
            check_state(net, step["state_after_forward"], 1e-12)
        lars(net, buffers)
    if "state_final" in case:
        check_state(net, case["state_final"], 1e-11)


def test_a_step_of_the_release(reference_slice: Any, hand_step: Any, given_bounds: None) -> None:
    check_steps(reference_slice("pixpro")["step"], hand_step)


@pytest.mark.parametrize(("case", "options"), [("step", (1, 2.0)), ("step_instance", (1, 2.0)), ("step_transform0", (0, 2.0)), ("step_transform2_p1", (2, 1.0))])
def test_steps_of_the_whole_file(reference_file: Any, hand_step: Any, given_bounds: None, case: str, options: tuple[int, float]) -> None:
    check_steps(reference_file("pixpro")[case], hand_step, *options)


# ---- pairs
def check_crops(case: dict[str, Tensor]) -> None:
    top, left, height, width = case["top_left_h_w"].unbind(1)
    w, h = case["size_wh"].unbind(1)
    boxes = torch.stack([left / w, top / h, (left + width) / w, (top + height) / h], 1)
    geometry = Geometry(boxes[:, None].float(), case["flip"][:, None], torch.stack([h, w], 1).float(), ((7, 7),), ())
    assert (pixel_bounds(geometry, 0) - case["coord"]).abs().max() < 1e-6


def test_coordinates_of_crops(reference_slice: Any) -> None:
    check_crops(reference_slice("pixpro")["crop_coordinates"])


def test_coordinates_of_crops_of_the_whole_file(reference_file: Any) -> None:
    check_crops(reference_file("pixpro")["crop_coordinates"])


@pytest.mark.parametrize("ratio", [0.7, 0.5])
def test_the_loss_and_its_gradient(reference_file: Any, ratio: float) -> None:
    case = reference_file("pixpro")["regression_loss"]
    q, k = case["q"].clone().requires_grad_(), case["k"].clone().requires_grad_()
    positive = near(case["coord_q"], case["coord_k"], ((7, 7), (7, 7)), ratio).float()
    assert positive[-1].sum() == 0, "the last image has no pair, and counts"
    loss = -2 * ((cosine_pairs(q, k) * positive).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    expected = case[f"ratio{ratio}"]
    assert abs(float(loss.detach() - expected["loss"])) < 1e-12
    # the release takes the gradient at unit vectors themselves; normalizing them here leaves its part across them
    for found, side, vectors in ((q.grad, "q", case["q"]), (k.grad, "k", case["k"])):
        across = expected[f"grad_{side}"] - (expected[f"grad_{side}"] * vectors).sum(1, keepdim=True) * vectors
        assert found is not None and (found - across).abs().max() < 1e-12


def geometry(boxes: list[list[float]], flips: tuple[bool, bool] = (False, False), source: tuple[float, float] = (101, 201)) -> Geometry:
    return Geometry(torch.tensor([boxes]), torch.tensor([flips]), torch.tensor([source]), ((32, 32), (32, 32)), PAIRS)


def found_pairs(g: Geometry, distance: float = 0.7, grid: tuple[int, int] = (4, 4)) -> Tensor:
    return near(pixel_bounds(g, 0), pixel_bounds(g, 1), (grid, grid), distance)[0]


def test_equal_crops_pair_each_cell_with_itself_and_a_mirrored_one_with_its_mirror_image() -> None:
    box = [0.2, 0.1, 0.8, 0.9]
    same = found_pairs(geometry([box, box]), 0.5)
    assert torch.equal(same, torch.eye(16, dtype=torch.bool))
    mirrored = found_pairs(geometry([box, box], (False, True)), 0.5)
    assert torch.equal(mirrored, torch.eye(16, dtype=torch.bool).view(4, 4, 16).flip(1).flatten(0, 1))


def test_a_pair_is_many_to_many_and_an_image_may_have_none() -> None:
    near_each_other = found_pairs(geometry([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]))
    assert near_each_other.sum(0).max() > 1 and (near_each_other.sum(1) >= 1).all()
    assert not found_pairs(geometry([[0.0, 0.0, 0.3, 0.3], [0.7, 0.7, 1.0, 1.0]])).any()


def hand(hand_step: Any, hidden: bool = False, shared: bool = False) -> Any:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True) for _ in range(2)]
    project = nn.Conv2d(3, 3, 1)
    g = geometry([[0.0, 0.0, 0.7, 0.7], [0.2, 0.2, 1.0, 1.0]])
    g = g._replace(boxes=g.boxes.repeat(2, 1, 1), flips=g.flips.repeat(2, 1), source=g.source.repeat(2, 1))
    step = hand_step([Features(cells=m) for m in maps], [Features(cells=m.detach()) for m in maps], {"projector": project, "values": nn.Conv2d(3, 3, 1)}, {"projector": project}, PAIRS, g)
    if shared:
        step.branches.target = step.branches.online
    if hidden:
        mask = torch.zeros(2, 16, dtype=torch.bool)
        mask[:, :9] = True
        step.hidden = (mask, None)
    return step, maps


@pytest.mark.parametrize("shared", [False, True])
def test_hidden_cells_are_no_positives_and_have_no_vote(hand_step: Any, shared: bool) -> None:
    step, maps = hand(hand_step, hidden=True, shared=shared)
    Pixels(channels=3, hidden=3).loss(step)["pixels"].backward()  # type: ignore[no-untyped-call]
    grad = maps[0].grad
    direction = grad.flatten(2)[:, :, :9]
    assert direction.abs().max() == 0 and grad.flatten(2)[:, :, 9:].abs().max() > 0


def test_an_image_without_a_pair_gives_nothing_and_counts(hand_step: Any) -> None:
    step, _ = hand(hand_step)
    whole = float(Pixels(channels=3, hidden=3).loss(step)["pixels"].detach())
    boxes = step.geometry.boxes.clone()
    boxes[1] = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]])
    step.geometry, step.made = step.geometry._replace(boxes=boxes), {}
    half = float(Pixels(channels=3, hidden=3).loss(step)["pixels"].detach())
    assert float(step.notes["pixels/none"]) == 0.5 and abs(half) < abs(whole)
