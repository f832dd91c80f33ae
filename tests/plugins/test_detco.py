"""DetCo against tensors of a re-implementation (the authors released no pre-training code), and its patches."""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
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


def check(case: dict[str, Any], hand_step: Any, shuffled: Tensor | None = None) -> None:
    part = Levels(channels=8, queue=24)
    online, target = (Side(part, case["state_before"], name) for name in ("encoder_q", "encoder_k"))
    with torch.no_grad():
        for o, t in zip(online.parameters().values(), target.parameters().values()):
            t.mul_(0.99).add_(o, alpha=0.01)
        order = case["idx_shuffle"]
        keys = target.features(case["im_k"][order], case["patches_k_shuffled"])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    keys = [Features(levels={name: level[back] for name, level in f.levels.items()}) for f in keys]
    queries = online.features(case["im_q"], case["patches_q"])
    queues: dict[str, nn.Module] = {}
    for number, (kind, level) in enumerate((kind, level) for kind in ("image", "patches") for level in NAMES):
        queue = Queue(24, 8).double()
        queue.keys.copy_(case["state_before"]["queue"][number].mT)
        queue.place.copy_(case["state_before"]["queue_ptr"][0])
        queues[f"queue_{kind}_{level}"] = queue
    nothing = [Features()]
    geometry = Geometry(torch.zeros(4, 22, 4), torch.zeros(4, 22, dtype=torch.bool), torch.zeros(4, 2), (), ((0, 1),), sets=PATCHES)
    step = hand_step([queries[0], *nothing * 3, *queries[1:], *nothing * 9], [*nothing, keys[0], *nothing * 11, *keys[1:]], online.heads | queues, target.heads, ((0, 1),), geometry)
    loss = part.loss(step)["levels"]
    loss.backward()  # type: ignore[no-untyped-call]
    terms = torch.stack([step.notes[f"{kind}/{level}"] for kind in ("image", "patches", "across") for level in NAMES])
    assert near(terms, case["losses"]) and near(loss, case["loss"])
    parameters = online.parameters()
    for name, expected in case["grads"].items():
        assert near(parameters[name].grad, expected), name
    state = {f"encoder_k.{k}": v for k, v in target.net.state_dict().items()}
    for name, value in state.items():
        assert near(value, case["state_after_forward"][name]), name
    part.after_micro_batch(step.branches, step, step.progress)
    part.after_step(step.branches)
    for number, filled in enumerate(queues.values()):
        assert isinstance(filled, Queue)
        assert near(filled.keys.mT, case["queue_after"][number]) and int(filled.place) == int(case["queue_ptr_after"])


def test_a_step_of_the_re_implementation(reference_slice: Any, hand_step: Any) -> None:
    check(reference_slice("detco")["one_rank"], hand_step)


def test_a_step_of_the_whole_file(reference_file: Any, hand_step: Any) -> None:
    check(reference_file("detco")["one_rank"], hand_step)


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
