"""MoCo and MoCo v2 against tensors of the official code: values, gradients, weights after steps, the queue."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

TOLERANCE = 1e-12


def names(file: str) -> dict[str, str]:
    """Official names -> ours; the projector is the encoder's `fc` there."""
    projector = "heads.moco/image/projector." + ("0." if file == "moco" else "")
    found = {"queue.": "state.moco/image/queue."}
    for theirs, branch in (("encoder_q.", "online."), ("encoder_k.", "target.")):
        found |= {theirs: f"{branch}encoder.", f"{theirs}fc.": branch + projector}
    return found


def driven(net: Any, file: str, meta: dict[str, Any]) -> Any:
    projector = "linear" if file == "moco" else "mlp"
    loss = {"use": "moco.image", "projector": projector, "channels": meta["dim"], "queue": meta["K"], "temperature": meta["T"]}
    optimizer = {"use": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True}
    target = {"momentum": meta["m"], "schedule": "constant", "update": "before_forward"}
    return net.Driven(loss, one_way=True, optimizer=optimizer, target=target)


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
        run.assembly.calls.after_step(branches=run.model.branches, step=step.settle(), progress=step.progress)
        queue = queue_as_ours({"queue": expected["queue_after"], "queue_ptr": expected["queue_ptr_after"]})
        net.agree("queue", run.model.state_dict(), net.renamed(queue, own), TOLERANCE)
    if "state_final" in case:
        net.agree("all after the last step", run.model.state_dict(), net.renamed(queue_as_ours(case["state_final"]), own), TOLERANCE)
