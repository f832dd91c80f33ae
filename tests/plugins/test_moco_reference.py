"""MoCo and MoCo v2 against tensors of the official code: values, gradients, weights after steps, the queue."""
from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

TOLERANCE = 1e-12


def names(file: str) -> dict[str, str]:
    """Official names -> ours; the projector is the encoder's `fc` there."""
    projector = "heads.moco/image/projector." + ("0." if file == "moco" else "")
    found = {"queue.": "state.moco/image/queue."}
    for theirs, branch in (("encoder_q.", "online."), ("encoder_k.", "target.")):
        found |= {theirs: f"{branch}encoder.", f"{theirs}fc.": branch + projector}
    return found


def driven(net: Any, file: str, meta: dict[str, Any], **tables: Any) -> Any:
    projector = "linear" if file == "moco" else "mlp"
    loss = {"use": "moco.image", "projector": projector, "channels": meta["dim"], "queue": meta["K"], "temperature": meta["T"]}
    optimizer = {"use": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True}
    target = {"momentum": meta["m"], "schedule": "constant", "update": "before_forward"}
    return net.Driven(loss, one_way=True, optimizer=optimizer, target=target, **tables)


def queue_as_ours(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "queue.keys": state["queue"].T.contiguous(), "queue.place": state["queue_ptr"]}


@pytest.mark.parametrize("file", ["moco", "moco_v2"])
def test_steps_of_the_official_code(file: str, net: Any, tensors: Callable[[str], Any]) -> None:
    stored = tensors(file)
    meta, case, own = stored["meta"]["one_rank"], stored["one_rank"], names(file)
    run = driven(net, file, meta)
    run.load(queue_as_ours(case["state_before"]), own)
    for expected in case["steps"]:
        run.model.follow(meta["m"])
        step = run.step(expected["im_q"].requires_grad_(), expected["im_k"])
        loss = run.loss(step)
        run.optimizer.zero_grad()
        loss.backward()
        net.agree("loss", {"": loss}, {"": expected["loss"]}, TOLERANCE)
        if "grads" in expected:
            net.agree("gradients", run.grads(), net.renamed(expected["grads"], own), TOLERANCE)
            net.agree("gradient of the images", {"": expected["im_q"].grad}, {"": expected["grad_im_q"]}, TOLERANCE)
            after = net.renamed(expected["state_after_forward"], own)
            net.agree("weights, statistics and keys after the forward pass", run.model.state_dict(), after, TOLERANCE)
        run.optimizer.step()
        run.after(step)
        queue = queue_as_ours({"queue": expected["queue_after"], "queue_ptr": expected["queue_ptr_after"]})
        net.agree("queue", run.model.state_dict(), net.renamed(queue, own), TOLERANCE)
    if "state_final" in case:
        net.agree("all after the last step", run.model.state_dict(), net.renamed(queue_as_ours(case["state_final"]), own), TOLERANCE)


class Given:
    """A random source that draws a permutation that is known."""

    def __init__(self, order: torch.Tensor) -> None:
        self.order = order

    def permutation(self, n: int) -> Any:
        assert n == len(self.order)
        return self.order.numpy()


def on_a_rank(rank: int) -> dict[str, dict[str, Any]]:
    """BatchNorm of each rank for itself, keys shuffled over the ranks as they were there, gradients averaged."""
    net, found = importlib.import_module("twinview_reference"), {}
    for file in ("moco", "moco_v2"):
        stored = torch.load(Path(__file__).resolve().parents[3] / "shared" / "reference" / "baselines" / f"{file}.pt", weights_only=True)
        meta, case, own = stored["meta"]["two_ranks"], stored["two_ranks"][f"rank{rank}"], names(file)
        run = driven(net, file, meta, extra=[{"use": "moco.shuffle"}], batch=2 * meta["B"])
        run.load(queue_as_ours(case["state_before"]), own)
        losses: list[torch.Tensor] = []
        first: dict[str, torch.Tensor] = {}
        for expected in case["steps"]:
            run.model.follow(meta["m"])
            step = run.step(expected["im_q"], expected["im_k"])
            with mock.patch("twinview.model.generator", lambda *names, order=expected["idx_shuffle"]: Given(order)):
                loss = run.loss(step)
            run.optimizer.zero_grad()
            loss.backward()
            for gradient in run.grads().values():
                dist.all_reduce(gradient)
                gradient /= 2
            first = first or {k: v.clone() for k, v in run.grads().items()}
            run.optimizer.step()
            run.after(step)
            losses.append(loss.detach())
        found[file] = {"losses": torch.stack(losses), "grads": first, "state": dict(run.model.state_dict())}
    return found


def test_two_ranks_with_shuffled_batchnorm(net: Any, two_ranks: Callable[[Callable[[int], Any]], list[Any]], shared: Path) -> None:
    """The queue as well: both ranks hold the keys of both, in the order of the ranks."""
    for rank, found in enumerate(two_ranks(on_a_rank)):
        for file, given in found.items():
            stored = torch.load(shared / "reference" / "baselines" / f"{file}.pt", weights_only=True)["two_ranks"][f"rank{rank}"]
            net.agree("losses", {"": given["losses"]}, {"": torch.stack([s["loss"] for s in stored["steps"]])}, TOLERANCE)
            net.agree("gradients", given["grads"], net.renamed(stored["steps"][0]["grads"], names(file)), TOLERANCE)
            net.agree("all after the last step", given["state"], net.renamed(queue_as_ours(stored["state_final"]), names(file)), TOLERANCE)


def test_a_queue_that_is_larger_than_the_data_set_is_refused_by_check(net: Any) -> None:
    from twinview.errors import RecipeError

    run = net.Driven({"use": "moco.image", "queue": 2000, "channels": 4}, one_way=True, images=1000)
    with pytest.raises(RecipeError, match=r"^\[\[loss\]\] moco.image: queue = 2000 is more than the 1000 images.* Write queue = 1000\.$"):
        run.assembly.calls.check(dims=run.model.dims, data=None)
