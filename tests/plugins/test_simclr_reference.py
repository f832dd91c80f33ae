"""SimCLR against tensors of the official code: loss and gradient on one and two ranks, the projector."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twinview.ops import nt_xent

TOLERANCE = 1e-12
TwoRanks = Callable[[Callable[[int], Any]], list[Any]]


@pytest.mark.parametrize("case", ["loss_T0.1", "loss_T0.5"])
def test_the_loss(case: str, net: Any, tensors: Callable[[str], Any]) -> None:
    """The release takes twice the mean over the 2N rows."""
    stored = tensors("simclr")[case]
    hidden = stored["hidden"].requires_grad_()
    a, b = hidden.chunk(2)
    loss = 2 * nt_xent(a, b, stored["temperature"]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    net.agree("loss", {"": loss}, {"": stored["loss"]}, TOLERANCE)
    net.agree("gradient", {"": hidden.grad}, {"": stored["grad_hidden"]}, TOLERANCE)


def names(layers: int = 3) -> dict[str, str]:
    parts = {"kernel": "{linear}.weight", "gamma": "{norm}.weight", "beta": "{norm}.bias", "moving_mean": "{norm}.running_mean", "moving_variance": "{norm}.running_var"}
    return {
        f"nl_{i}.{theirs}": "online.heads.simclr/image/projector." + ours.format(linear=3 * i, norm=3 * i + 1) for i in range(layers) for theirs, ours in parts.items()
    }


def as_ours(state: dict[str, Tensor], rows: int, before: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Kernels are [in, out] there.  The running variance is the biased one there: what a batch adds to it is n / (n - 1) times as much here."""
    found = {k: v.T if k.endswith("kernel") else v for k, v in state.items()}
    for k in [k for k in found if before is not None and k.endswith("moving_variance")]:
        assert before is not None
        found[k] = 0.9 * before[k] + (found[k] - 0.9 * before[k]) * rows / (rows - 1)
    return found


def test_the_projector_takes_both_views_in_one_pass(net: Any, tensors: Callable[[str], Any]) -> None:
    stored = tensors("simclr")["head"]
    hiddens, state = stored["hiddens"], stored["state_before"]
    rows, width = hiddens.shape
    run = net.Driven({"use": "simclr.image", "channels": 8, "weight": 2.0}, width=[width], batch=6, target={"momentum": 0.0})
    run.load({**as_ours(state, rows), "zero.": torch.zeros(8).double()}, {**names(), "zero.": "online.heads.simclr/image/projector.7.bias"})
    images = hiddens.requires_grad_()
    loss = 2 * run.loss(run.step(*images[..., None, None].chunk(2)))
    loss.backward()
    net.agree("loss", {"": loss}, {"": stored["loss"]}, TOLERANCE)
    grads = net.renamed(as_ours(stored["grads"], rows), names())
    net.agree("gradients", run.grads(), grads, TOLERANCE)
    net.agree("gradient of the features", {"": images.grad}, {"": stored["grad_hiddens"]}, TOLERANCE)
    after = net.renamed(as_ours(stored["state_after_forward"], rows, state), names())
    net.agree("statistics", run.model.state_dict(), after, 1e-8)  # float32 constants in the framework of the tensors


def folders() -> list[Path]:
    here = Path(__file__).resolve()
    return [here.with_name("fixtures") / "baselines", here.parents[3] / "shared" / "reference" / "baselines"]


def on_a_rank(rank: int) -> list[dict[str, Tensor]]:
    """Of each folder that there is: the rank's loss, and the gradient of the mean of both."""
    found = []
    for folder in folders():
        if (folder / "simclr.pt").is_file():
            stored = torch.load(folder / "simclr.pt", weights_only=True)["two_ranks"][f"rank{rank}"]
            hidden = stored["hidden"].requires_grad_()
            a, b = hidden.chunk(2)
            loss = 2 * nt_xent(a, b, 0.1).mean()
            (loss / 2).backward()  # type: ignore[no-untyped-call]
            assert hidden.grad is not None
            found.append({"loss": loss.detach(), "grad_hidden": hidden.grad})
    return found


def test_two_ranks(net: Any, two_ranks: TwoRanks) -> None:
    found = two_ranks(on_a_rank)
    for i, folder in enumerate(f for f in folders() if (f / "simclr.pt").is_file()):
        for rank in (0, 1):
            stored = torch.load(folder / "simclr.pt", weights_only=True)["two_ranks"][f"rank{rank}"]
            net.agree(f"rank {rank}", found[rank][i], {k: stored[k] for k in ("loss", "grad_hidden")}, TOLERANCE)
