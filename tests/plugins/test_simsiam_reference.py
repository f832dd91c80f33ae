"""SimSiam against tensors of the official code: values, gradients, weights after steps."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOLERANCE = 1e-12
NAMES = {"encoder.": "online.encoder.", "encoder.fc.": "online.heads.simsiam/image/projector.", "predictor.": "online.heads.simsiam/image/predictor."}


def as_ours(state: dict[str, Any]) -> dict[str, Any]:
    """Without the bias in front of the last norm, which is frozen there and which the norm takes away; only its running mean holds it."""
    kept = {k: v for k, v in state.items() if k != "encoder.fc.6.bias"}
    if "encoder.fc.7.running_mean" in kept:
        kept["encoder.fc.7.running_mean"] = kept["encoder.fc.7.running_mean"] - state["encoder.fc.6.bias"]
    return kept


def test_steps_of_the_official_code(net: Any, tensors: Callable[[str], Any]) -> None:
    stored = tensors("simsiam")
    meta = stored["meta"]["constants"]
    loss = {"use": "simsiam.image", "channels": meta["dim"], "hidden": meta["width"][1], "predictor_hidden": meta["pred_dim"]}
    optimizer = {"use": "sgd", "lr": meta["lr"], "momentum": 0.9, "weight_decay": 1e-4, "decay_norm_bias": True}
    run = net.Driven(loss, optimizer=optimizer, target={"momentum": 0.0})
    run.load(as_ours(stored["state_before"]), NAMES)
    for expected in stored["steps"]:
        step = run.step(expected["x1"], expected["x2"])
        loss = run.loss(step)
        run.optimizer.zero_grad()
        loss.backward()
        projector, predictor = (step.head("simsiam.image", name) for name in ("projector", "predictor"))
        found = {"loss": loss}
        for view in (0, 1):
            found |= {
                f"h{view + 1}": step.online[view].pooled,
                f"z{view + 1}": step.apply(projector, view, "online", "pooled"),
                f"p{view + 1}": step.apply((projector, predictor), view, "online", "pooled"),
            }
        net.agree("values", found, {k: expected[k] for k in found}, TOLERANCE)
        if "grads" in expected:
            grads = net.renamed(as_ours({**expected["grads"], "encoder.fc.6.bias": 0.0}), NAMES)
            net.agree("gradients", run.grads(), grads, TOLERANCE)
            net.agree("after the forward pass", run.model.state_dict(), net.renamed(as_ours(expected["state_after_forward"]), NAMES), TOLERANCE)
        run.optimizer.step()
    if "state_final" in stored:
        net.agree("all after the last step", run.model.state_dict(), net.renamed(as_ours(stored["state_final"]), NAMES), TOLERANCE)
