"""The loss (eq. 1 and 3), the head (section 3.2 and appendix C) and the center (eq. 4)."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview import Branches, hookimpl, part
from twinview.ops.checks import share
from twinview.ops.means import wide
from twinview.ops.ranks import summed
from twinview.values import Dims, Head, ParamRule, Step, Traits


class Projector(nn.Module):
    """Three layers with GELU between them, and unit vectors [B, bottleneck] at the end."""

    def __init__(self, width: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, bottleneck]."""
        return F.normalize(wide(self.layers(x)), dim=1)


class Prototypes(nn.Module):
    """A linear layer whose rows have a length of their own: W = length * direction / |direction|, without bias."""

    def __init__(self, width: int, outputs: int, *, fixed: bool) -> None:
        """`fixed`: lengths stay 1."""
        super().__init__()
        self.direction = nn.Parameter(nn.Linear(width, outputs, bias=False).weight.detach().clone())
        self.length = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, outputs]."""
        return F.linear(x, self.length * F.normalize(self.direction, dim=1))


class Center(nn.Module):
    """The moving mean of what the target gives, over all ranks and all its views: the same for every micro-batch of a step."""

    value: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(1, outputs))
        self.held: list[Tensor] = []  # of the step under way, in no checkpoint

    def hold(self, outputs: Tensor, micro: int) -> None:
        """Keep the mean of a micro-batch's outputs [n, K], of all ranks."""
        if micro == 0:
            self.held.clear()
        rows = summed(torch.cat([outputs.sum(0), outputs.new_tensor([float(len(outputs))])]))
        self.held.append(rows[:-1] / rows[-1])

    def commit(self, momentum: float) -> None:
        """Equation 4, once a step."""
        self.value.mul_(momentum).add_(torch.stack(self.held).mean(0), alpha=1 - momentum)
        self.held.clear()


@part
class Distill:
    """Cross-entropy between the target's centered and sharpened distribution and the online branch's, over all pairs (eq. 1 and 3).

    The target's temperature rises from `warmup_temperature` to `target_temperature` over the first epochs, a step an epoch.  Decay that rises
    and clipping by tensor are of the recipe: [optimizer] weight_decay_end and clip.
    """

    hidden: int = field(default=2048, validator=gt(0))  # width of the projector's hidden layers
    bottleneck: int = field(default=256, validator=gt(0))  # width of the unit vectors before the last layer
    outputs: int = field(default=65536, validator=gt(1))  # K
    temperature: float = field(default=0.1, validator=gt(0))  # of the online branch
    target_temperature: float = field(default=0.04, validator=gt(0))  # of the target, after the first epochs
    warmup_temperature: float = field(default=0.04, validator=gt(0))  # of the target in the first epoch
    warmup_epochs: int = field(default=0, validator=ge(0))  # in which the target's temperature rises; 0: it does not
    center_momentum: float = field(default=0.9, validator=share)  # share of the old center that a step keeps
    frozen: int = field(default=1, validator=ge(0))  # epochs before the last layer moves
    norm_last_layer: bool = True  # the last layer's rows keep the length 1

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features (the class token: timm.encoder pooled = "token"), pairs of views, and a target that is an average."""
        return Traits(needs=frozenset({"pooled", "pairs", "averaged_target"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The averaged `projector` and `prototypes`, and the `center`."""
        return {
            "projector": Head(Projector(dims.width("pooled"), self.hidden, self.bottleneck)),
            "prototypes": Head(
                Prototypes(self.bottleneck, self.outputs, fixed=self.norm_last_layer), rule=ParamRule(frozen_until=self.frozen)
            ),
            "center": Head(Center(self.outputs), "state"),
        }

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`dino`, nats: at most log K at the start."""
        center: Tensor = step.branches.online.of(self, "center").value
        sharp = self.sharpness(step.progress.epoch)
        given = {view: ((self._outputs(step, view, "target") - center) / sharp).softmax(1) for view in self._targets(step)}
        said = {view: (self._outputs(step, view, "online") / self.temperature).log_softmax(1) for view, _ in step.pairs}
        terms = [-(given[target] * said[online]).sum(1).mean() for online, target in step.pairs]
        return {"dino": torch.stack(terms).mean()}

    @hookimpl
    def after_micro_batch(self, branches: Branches, step: Step) -> None:
        """Gather what moves the center."""
        outputs = torch.cat([self._outputs(step, view, "target") for view in self._targets(step)])
        branches.online.of(self, "center").hold(outputs, step.progress.micro)

    @hookimpl
    def after_step(self, branches: Branches) -> None:
        """Move it."""
        branches.online.of(self, "center").commit(self.center_momentum)

    def sharpness(self, epoch: int) -> float:
        """The target's temperature in an epoch: `warmup_epochs` values from one end to the other, then the last."""
        if epoch >= self.warmup_epochs:
            return self.target_temperature
        rise = (self.target_temperature - self.warmup_temperature) / max(1, self.warmup_epochs - 1)
        return self.warmup_temperature + epoch * rise

    def _outputs(self, step: Step, view: int, role: str) -> Tensor:
        chain = [step.head(self, "projector"), step.head(self, "prototypes")]
        return wide(step.apply(chain, view, "target" if role == "target" else "online", on="pooled"))

    @staticmethod
    def _targets(step: Step) -> list[int]:
        return sorted({target for _, target in step.pairs})
