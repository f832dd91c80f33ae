"""IIC beside tensors made by the official code: the loss on a slice that lies here, and a step of each head where the whole file is at hand."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.ops.sobel import sobel
from twinview_iic.information import information, joint_counts
from twinview_iic.network import Network

SLICE = Path(__file__).parent / "fixtures" / "iic" / "slice.pt"


def near(found: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Largest difference, as a share of the expected tensor's largest magnitude."""
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    gap = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert gap <= tolerance, f"{what}: {gap:.1e}"


def back(x: Tensor, case: dict[str, Any]) -> Tensor:
    """View 2's map brought to view 1, with zeros outside: what an alignment does here."""
    return F.grid_sample(x, F.affine_grid(case["affine2_to_1"].double(), list(x.shape), align_corners=False), align_corners=False)


@pytest.fixture(params=["slice", "whole"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The tensors."""
    path = SLICE if request.param == "slice" else request.getfixturevalue("shared") / "reference/baselines/iic.pt"
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("form", ["uncollapsed", "collapsed"])
def test_the_loss_of_free_logits(case: dict[str, Any], form: str) -> None:
    one, two = (case[f"logits{v}"].clone().requires_grad_() for v in (1, 2))
    mask = case["mask"][:, None].double()
    found = information(one.softmax(1) * mask, back(two.softmax(1), case) * mask, 3, 1.5, form == "collapsed")
    found.loss.backward()  # type: ignore[no-untyped-call]
    near(found.loss, case[f"loss_{form}"], 1e-13, "loss")
    for name, x in ((f"grad1_{form}", one), (f"grad2_{form}", two)):
        if name in case:
            assert x.grad is not None
            near(x.grad[: len(case[name])], case[name], 1e-13, name)


def test_edges(case: dict[str, Any]) -> None:
    n = len(case["sobel1"])
    images = case["images1"][:n]
    near(torch.cat([images[:, :3], sobel(images[:, 3:])], 1), case["sobel1"], 3e-7)


def test_the_fourier_way_is_the_sum_itself() -> None:
    torch.manual_seed(0)
    x1, x2 = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    found = joint_counts(x1, x2, 2)
    padded = F.pad(x1, (2, 2, 2, 2))
    for u in range(5):
        for v in range(5):
            expected = torch.einsum("biyx,bjyx->ij", padded[:, :, u : u + 5, v : v + 6], x2)
            assert torch.allclose(found[u, v], expected, atol=1e-5), (u, v)
    assert torch.allclose(found.permute(2, 3, 0, 1), F.conv2d(x1.transpose(0, 1), x2.transpose(0, 1), padding=2), atol=1e-5)


class Heads(nn.Module):
    """The sub-heads of one head as the release has them: padded by a ring of cells, which become uniform."""

    def __init__(self, state: dict[str, Tensor], name: str) -> None:
        super().__init__()
        weights = [state[f"head_{name}.heads.{s}.0.weight"] for s in (0, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(w.shape[1], w.shape[0], 1, padding=1, bias=False) for w in weights)
        for conv, w in zip(self.convs, weights):
            conv.weight.data = w.double().clone()

    def forward(self, cells: Tensor) -> list[Tensor]:
        return [F.interpolate(conv(cells).softmax(1), (16, 16), mode="bilinear", align_corners=False) for conv in self.convs]


def test_a_step_of_head_a_then_of_head_b(shared: Path) -> None:
    case = torch.load(shared / "reference/baselines/iic.pt", weights_only=True)
    state = case["state"]
    network = Network(3, "colors_and_edges", [8], [12], [12], padding=1).double().train()
    theirs = {"0": "0", "1": "1", "4": "4", "5": "5", "7": "7", "8": "8"}  # conv, norm, relu and one pool: their numbers are ours
    network.load_state_dict({f"layers.{theirs[k.split('.')[2]]}.{k.split('.')[3]}": v for k, v in state.items() if k.startswith("trunk")})
    heads = {name: Heads(state, name) for name in "AB"}
    optimizer = torch.optim.Adam([p for m in (network, *heads.values()) for p in m.parameters()], lr=case["meta"]["adam_lr"])
    mask = case["mask"][:, None].double()

    def maps(head: str) -> tuple[list[Tensor], list[Tensor]]:
        ones, twos = (heads[head](network.layers(case[f"sobel{v}"].double())) for v in (1, 2))
        return ones, twos

    for head, weight in (("A", 1.0), ("B", 1.5)):
        optimizer.zero_grad(set_to_none=False)  # as that PyTorch did: a head that is idle again keeps moving by Adam's momentum
        ones, twos = maps(head)
        if head == "A":
            near(ones[0], case["x1"], 1e-13, "x1")
            near(twos[0], case["x2"], 1e-13, "x2")
            near(back(twos[0], case), case["x2_back"], 1e-13, "x2_back")
        found = [information(x1 * mask, back(x2, case) * mask, 3, weight) for x1, x2 in zip(ones, twos)]
        loss = torch.stack([terms.loss for terms in found]).mean()
        near(loss, case[f"loss_{head}"], 3e-13, f"loss {head}")
        near(-torch.stack([terms.nats for terms in found]).mean(), case[f"loss_no_lamb_{head}"], 1e-11, f"nats {head}")  # which nearly cancels
        loss.backward()  # type: ignore[no-untyped-call]
        largest = max(float(g.abs().max()) for g in case[f"grads_{head}"].values())
        for name, expected in case[f"grads_{head}"].items():
            gradient = (network.get_parameter(f"layers.{name.removeprefix('trunk.features.')}") if name.startswith("trunk")
                        else heads[head].get_parameter(f"convs.{name.split('.')[2]}.weight")).grad
            assert gradient is not None and float((gradient - expected).abs().max()) <= 1e-12 * largest, name
        optimizer.step()
    for name, expected in case["state_after"].items():
        if name.startswith("trunk"):
            ours = network.state_dict()[f"layers.{name.removeprefix('trunk.features.')}"]
        else:
            ours = heads[name.split(".")[0][-1]].get_parameter(f"convs.{name.split('.')[2]}.weight").detach()
        assert float((ours.double() - expected.double()).abs().max()) <= 1e-12, name
