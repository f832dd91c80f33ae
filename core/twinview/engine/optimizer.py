"""Parameter groups, the optimizer over them, and its state by parameter name."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from twinview.assembly import Assembly
from twinview.branch import Branch, ParamRule
from twinview.ops.lars import LARS
from twinview.recipe import tables


def make_optimizer(assembly: Assembly, online: nn.Module) -> tuple[Optimizer, dict[str, nn.Parameter]]:
    """The recipe's optimizer over the online branch, and the parameters that it moves by name; frozen ones lose `requires_grad`.

    Parameters that are treated alike share a group.  Biases and norms (at most one dimension) get neither weight decay nor LARS's trust
    ratio, unless the recipe says `decay_norm_bias` or a part's `param_groups` gives them a decay of their own.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    trainable: dict[str, nn.Parameter] = {}
    spec = assembly.recipe.optimizer
    for name, parameter in online.named_parameters():
        own = online.rule(name) if isinstance(online, Branch) else None
        rule = assembly.calls.param_groups(name=name, parameter=parameter) or own or ParamRule()
        if rule.frozen or not parameter.requires_grad:
            parameter.requires_grad_(False)
            continue
        whole = parameter.ndim > 1 or spec.decay_norm_bias
        decay = rule.weight_decay if rule.weight_decay is not None else spec.weight_decay * whole
        group: dict[str, Any] = {"weight_decay": decay, "lr_scale": rule.lr_scale, "schedule": rule.schedule, "frozen_until": rule.frozen_until}
        group |= {"decay": decay, "decay_scheduled": rule.weight_decay is None and whole, "resets": _own_group(assembly, online, name)}
        if isinstance(spec, tables.LARS):
            group["adapt"] = bool(whole or decay > 0)
        groups.setdefault(tuple(group.values()), {**group, "params": []})["params"].append(parameter)
        trainable[name] = parameter
    return _optimizer(spec, list(groups.values()), spec.peak(assembly.recipe.run.batch_size)), trainable


def _optimizer(spec: Any, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    if isinstance(spec, tables.AdamW):
        # fused only where the recipe asks for it: on a CPU it rounds the ends of a tensor otherwise, so that a shard differs from its whole
        return AdamW(groups, lr=lr, betas=spec.betas, eps=spec.eps, fused=spec.fused or None)
    if isinstance(spec, tables.SGD):
        return SGD(groups, lr=lr, momentum=spec.momentum, nesterov=spec.nesterov)
    return LARS(
        groups, lr, momentum=spec.momentum, trust=spec.trust, eps=spec.eps, nesterov=spec.nesterov, lr_inside=spec.lr_inside
    )


def _own_group(assembly: Assembly, online: nn.Module, name: str) -> str:
    """A group of its own for each head of a part that may reset it: under ZeRO the parameters of a group are counted together."""
    head = online.head_of(name) if isinstance(online, Branch) else ""
    may = {assembly.key(label) for hook in ("before_epoch", "after_step") for label in assembly.answers(hook)}
    return head if head.rpartition("/")[0] in may else ""


def optimizer_state(optimizer: Optimizer, trainable: dict[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """What the optimizer remembers (momenta, moments, counts), by parameter name."""
    return {name: dict(optimizer.state[p]) for name, p in trainable.items() if p in optimizer.state}


def load_optimizer_state(optimizer: Optimizer, trainable: dict[str, nn.Parameter], saved: dict[str, dict[str, Any]]) -> None:
    """The inverse of `optimizer_state`; rates and decays stay as the recipe has them.  Raises KeyError on a name that nothing has."""
    place = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state = {place[id(trainable[name])]: values for name, values in saved.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def set_rates(optimizer: Optimizer, peak: float, factor: float, decay: float | None = None, epoch: int = 0) -> None:
    """Give every group its learning rate and its weight decay for a step of `epoch`: scheduled, or constant where a part asked for that.

    `decay`: of the recipe at this step, None where it stays.  Groups that are frozen until a later epoch have neither.
    """
    for group in optimizer.param_groups:
        frozen = epoch < group["frozen_until"]
        group["lr"] = 0.0 if frozen else peak * group["lr_scale"] * (factor if group["schedule"] == "recipe" else 1.0)
        scheduled = decay if decay is not None and group["decay_scheduled"] else group["decay"]
        group["weight_decay"] = 0.0 if frozen else scheduled


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The global norm of what gradients there are."""
    import torch

    grads = list(_grads(parameters))
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))) if grads else 0.0


def _grads(parameters: Iterable[nn.Parameter]) -> Iterator[Any]:
    return (p.grad for p in parameters if p.grad is not None)
