"""DetCo against tensors of a re-implementation (the authors released no pre-training code), and its patches."""
from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from twinview.ops import Queue
from twinview.values import Features, Geometry
from twinview_detco import GlobalAndPatches, Levels

NAMES = ["c2", "c3", "c4", "c5"]
PATCHES = tuple(range(4, 13)), tuple(range(13, 22))


class Net(nn.Module):
    """The encoder that the tensors were made with: four levels of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 3, 4, 5, 6]
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Features:
        levels = {}
        for name, layer in zip(NAMES, self.layers):
            levels[name] = x = layer(x)
        return Features(levels=levels)


def near(found: Tensor | None, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return found is not None and found.shape == expected.shape and float((found.detach().double() - expected.double()).abs().max()) < tolerance


class Side:
    """A branch with the official names."""

    def __init__(self, part: Levels, state: dict[str, Tensor], name: str) -> None:
        dims: Any = type("D", (), {"width": lambda self, on: dict(zip(NAMES, (3, 4, 5, 6)))[on], "sets": PATCHES, "global_batch": 4, "dataset_size": 24})()
        made = {key: head.module.double() for key, head in part.heads(dims).items()}
        self.net, self.heads = Net().double(), {key: module for key, module in made.items() if not key.startswith("queue")}
        self.modules: dict[str, nn.Module] = {f"{name}": self.net}
        for kind, official in (("image", "global_mlps"), ("patches", "local_mlps")):
            self.modules |= {f"{name}.{official}.{i}": self.heads[f"{kind}_{level}"] for i, level in enumerate(NAMES)}
        for prefix, module in self.modules.items():
            own = {k: state[f"{prefix}.{k}"] for k in module.state_dict()}
            module.load_state_dict(own)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{prefix}.{k}": p for prefix, module in self.modules.items() for k, p in module.named_parameters()}

    def features(self, image: Tensor, patches: Tensor) -> list[Features]:
        """Of the whole view, and of nine patches in one pass, patch by patch."""
        return [self.net(image), *self.net(patches).split(9)]


def encoded(target: Side, images: Tensor, patches: Tensor) -> list[Features]:
    """Keys of images and their patches, in the order that they came in."""
    with torch.no_grad():
        return target.features(images, patches)


def check(rank: int, cases: Sequence[dict[str, Any]], hand_step: Any) -> None:
    """A step on one of the ranks whose cases these are: keys shuffled over the ranks, BatchNorm of each rank by itself."""
    case, part = cases[rank], Levels(channels=8, queue=24)
    online = Side(part, case["state_before"], "encoder_q")
    targets = [Side(part, case["state_before"], "encoder_k") for _ in cases]
    for target in targets:
        with torch.no_grad():
            for o, t in zip(online.parameters().values(), target.parameters().values()):
                t.mul_(0.99).add_(o, alpha=0.01)
    order = case["idx_shuffle"]
    mixed = torch.cat([c["im_k"] for c in cases])[order].chunk(len(cases))
    parts = [encoded(target, images, c["patches_k_shuffled"]) for target, images, c in zip(targets, mixed, cases)]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    own = back.chunk(len(cases))[rank]
    keys = [Features(levels={name: torch.cat([f.levels[name] for f in of_ranks])[own] for name in NAMES}) for of_ranks in zip(*parts)]
    queries = online.features(case["im_q"], case["patches_q"])
    queues: dict[str, nn.Module] = {}
    for number, (kind, level) in enumerate((kind, level) for kind in ("image", "patches") for level in NAMES):
        queue = Queue(24, 8).double()
        queue.keys.copy_(case["state_before"]["queue"][number].mT)
        queue.place.copy_(case["state_before"]["queue_ptr"][0])
        queues[f"queue_{kind}_{level}"] = queue
    nothing, images = [Features()], len(case["im_q"])
    geometry = Geometry(torch.zeros(images, 22, 4), torch.zeros(images, 22, dtype=torch.bool), torch.zeros(images, 2), (), ((0, 1),), sets=PATCHES)
    given, sought = [queries[0], *nothing * 3, *queries[1:], *nothing * 9], [*nothing, keys[0], *nothing * 11, *keys[1:]]
    step = hand_step(given, sought, online.heads | queues, targets[rank].heads, ((0, 1),), geometry)
    loss = part.loss(step)["levels"]
    loss.backward()  # type: ignore[no-untyped-call]
    terms = torch.stack([step.notes[f"{kind}/{level}"] for kind in ("image", "patches", "across") for level in NAMES])
    assert near(terms, case["losses"]) and near(loss, case["loss"])
    parameters = online.parameters()
    for name, expected in case["grads"].items():  # the mean over the ranks
        gradient = parameters[name].grad
        assert gradient is not None, name
        if len(cases) > 1:
            dist.all_reduce(gradient)
        assert near(gradient / len(cases), expected), name
    for name, value in targets[rank].net.state_dict().items():
        assert near(value, case["state_after_forward"][f"encoder_k.{name}"]), name
    part.after_micro_batch(step.branches, step, step.progress)
    part.after_step(step.branches)
    for number, filled in enumerate(queues.values()):
        assert isinstance(filled, Queue)
        assert near(filled.keys.mT, case["queue_after"][number]) and int(filled.place) == int(case["queue_ptr_after"])


def test_a_step_of_the_re_implementation(reference_slice: Any, hand_step: Any) -> None:
    check(0, [reference_slice("detco")["one_rank"]], hand_step)


def test_a_step_of_the_whole_file(reference_file: Any, hand_step: Any) -> None:
    check(0, [reference_file("detco")["one_rank"]], hand_step)


def on_a_rank(rank: int) -> dict[str, bool]:
    spec = importlib.util.spec_from_file_location("step_by_hand", Path(__file__).with_name("conftest.py"))
    assert spec is not None and spec.loader is not None
    by_hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(by_hand)
    stored = torch.load(Path(__file__).resolve().parents[3] / "shared" / "reference" / "baselines" / "detco.pt", weights_only=True)["two_ranks"]
    check(rank, [stored["rank0"], stored["rank1"]], by_hand.HandStep)
    return {"agrees": True}


def test_a_step_of_two_ranks(reference_file: Any, two_ranks: Callable[[Callable[[int], Any]], list[Any]]) -> None:
    """Each rank's own loss, the mean of their gradients, and queues that hold the keys of both."""
    assert "two_ranks" in reference_file("detco")
    assert two_ranks(on_a_rank) == [{"agrees": True}] * 2


# ---- views
@pytest.mark.parametrize("of", ["own", "global"])
def test_patches_lie_in_their_cells_and_share_a_photometry(of: Any) -> None:
    sampler, orders = GlobalAndPatches(patches_from=of), []
    for seed in range(6):
        g = sampler.sample_views((375, 500), np.random.default_rng(seed))
        assert g.pairs == ((0, 1),) and g.sets == PATCHES and g.sizes == ((224, 224),) * 2 + ((255, 255),) * 2 + ((64, 64),) * 18 and g.cut_from == (0, 1, 2, 3) + (2,) * 9 + (3,) * 9
        assert g.draws == ((0, 1, 0, 1) + (0,) * 9 + (1,) * 9 if of == "global" else (0, 1, 2, 3) + (2,) * 9 + (3,) * 9)
        for which, views in enumerate(g.sets):
            boxes = g.boxes[list(views)]
            assert len(set(g.flips[list(views)].tolist())) == 1
            sides = boxes[:, 2:] - boxes[:, :2]
            assert float((sides - sides[0]).abs().max()) < 1e-6
            crop = sides[0] * 255 / 64
            if of == "global":
                corner = g.boxes[which, :2]
                assert float((g.boxes[which, 2:] - corner - crop).abs().max()) < 1e-5
                place = (boxes[:, :2] - corner) / crop * 255
                cells = (place + 1e-3).div(85).floor()
                assert sorted(map(tuple, cells.long().tolist())) == [(x, y) for x in range(3) for y in range(3)]
                assert float((place - 85 * cells).max()) < 21.01
                orders.append(tuple(map(tuple, cells.long().tolist())))
    assert of == "own" or len(set(orders)) == 12


def test_a_canvas_too_small_for_its_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="canvas wants at least 192"):
        GlobalAndPatches(canvas=100)
