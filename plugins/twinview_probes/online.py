"""A classifier that learns beside the run, on its detached features, and changes nothing of it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import field
from attrs.validators import ge, gt, lt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.branch import Branches, Head
from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops.ranks import gather_rows
from twinview.values import Dims, Progress, Step, Traits
from twinview_probes.knn import votes


@part
class Online:
    """[[extra]]: a linear classifier and nearest neighbors on features that the losses have computed, after every step or every N-th.

    Learns from the training images' class labels and touches no weight of the run, draws no random number and encodes nothing: the losses are
    bit for bit those without it.  Accuracies on the coming batch, before it is learned from, are logged as running means: `online/top1`,
    `online/knn`.  Training images with their augmentation: a sign of life, no score; [[evaluate]] with `every` gives scores.
    """

    view: int = field(default=0, validator=ge(0))  # whose features are scored
    branch: Literal["online", "target"] = "online"  # of the network that gives them
    on: Literal["pooled", "cells"] = "pooled"  # the mean of the cells
    every: int = field(default=1, validator=gt(0))  # steps
    lr: float = field(default=0.3, validator=gt(0))  # of SGD with momentum 0.9, on features that are standardized by running statistics
    decay: float = field(default=1e-4, validator=ge(0))  # weight decay of the classifier
    memory: int = field(default=0, validator=ge(0))  # features that neighbors are looked for among; 0: no neighbors
    k: int = field(default=20, validator=gt(0))  # neighbors that vote
    temperature: float = field(default=0.07, validator=gt(0))  # of the votes
    smoothing: float = field(default=0.95, validator=[ge(0), lt(1)])  # of the running means

    @hookimpl
    def traits(self) -> Traits:
        """Needs labels, and the features that `on` names."""
        return Traits(needs=frozenset({"labels", self.on}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """A view that there is not is refused before the training."""
        if self.view >= len(dims.sizes):
            there = f"views are counted from 0, and there are {len(dims.sizes)}"
            raise RecipeError(f"[[extra]] probes.online view: there is no view {self.view}; {there}.")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The `probe`, whose numbers are all state: kept in checkpoints, moved by nobody else."""
        return {"probe": Head(OnlineProbe(dims.width(self.on), max(dims.classes, 1), self.memory), "state")}

    @hookimpl
    def after_step(self, branches: Branches, step: Step, progress: Progress) -> None:
        """Score the step's features, then learn from them; every rank from those of all."""
        if progress.step % self.every:
            return
        if not step.made(self.view, self.branch):
            said = f"no loss looks at view {self.view} of the {self.branch} branch"
            raise RecipeError(f"[[extra]] probes.online: {said}. Write view or branch of one that is computed anyway.")
        features = (step.online if self.branch == "online" else step.target)[self.view].at(self.on).detach().float()
        x = gather_rows(features if features.ndim == 2 else features.mean((2, 3)))
        y = gather_rows(step.batch.labels["class"].to(x.device))
        probe: OnlineProbe = branches.online.of(self, "probe")
        with torch.autocast(x.device.type, enabled=False):
            for name, value in probe.learn(x, y, self).items():
                step.note(f"online/{name}", value)


class OnlineProbe(nn.Module):
    """Weights, momenta, statistics and memory, all buffers."""

    weight: Tensor
    bias: Tensor
    weight_moment: Tensor
    bias_moment: Tensor
    mean: Tensor
    var: Tensor
    steps: Tensor
    means: Tensor
    bank: Tensor
    labels: Tensor

    def __init__(self, channels: int, classes: int, memory: int) -> None:
        super().__init__()
        for name in ("weight", "weight_moment"):
            self.register_buffer(name, torch.zeros(classes, channels))
        for name in ("bias", "bias_moment"):
            self.register_buffer(name, torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("means", torch.zeros(2))  # of top1 and of neighbors
        self.register_buffer("bank", torch.zeros(memory, channels))
        self.register_buffer("labels", torch.full((memory,), -1))

    @torch.no_grad()
    def learn(self, x: Tensor, y: Tensor, options: Online) -> dict[str, Tensor]:
        """Features [B, C] and classes [B] -> running accuracies in percent; then one step of SGD."""
        found = {"top1": self._linear(x, y, options)}
        if len(self.bank):
            found["knn"] = self._neighbors(x, y, options)
        kept = options.smoothing if int(self.steps) else 0.0
        for place, value in enumerate(found.values()):
            self.means[place] = kept * self.means[place] + (1 - kept) * value
        self.steps += 1
        return {name: self.means[place] for place, name in enumerate(found)}

    def _linear(self, x: Tensor, y: Tensor, options: Online) -> Tensor:
        kept = 0.9 if int(self.steps) else 0.0
        var, mean = torch.var_mean(x, 0, correction=0)
        self.mean.mul_(kept).add_(mean, alpha=1 - kept)
        self.var.mul_(kept).add_(var, alpha=1 - kept)
        z = (x - self.mean) * (self.var + 1e-6).rsqrt()
        logits = F.linear(z, self.weight, self.bias)
        error = (logits.softmax(1) - F.one_hot(y, len(self.bias))) / len(x)
        for value, moment, gradient in (
            (self.weight, self.weight_moment, error.T @ z + options.decay * self.weight), (self.bias, self.bias_moment, error.sum(0))
        ):
            moment.mul_(0.9).add_(gradient)
            value.sub_(moment, alpha=options.lr / len(z[0]) ** 0.5)
        return 100 * (logits.argmax(1) == y).float().mean()

    def _neighbors(self, x: Tensor, y: Tensor, options: Online) -> Tensor:
        unit, size = F.normalize(x, dim=1), len(self.bank)
        known = self.labels >= 0
        right = x.new_zeros(())
        if bool(known.any()):
            bank, labels = self.bank[known], self.labels[known]
            near, places = (unit @ bank.T).topk(min(options.k, len(bank)))
            right = 100 * (votes(near, labels[places], len(self.bias), options.temperature).argmax(1) == y).float().mean()
        unit, y = unit[-size:], y[-size:]
        self.bank.copy_(torch.cat([self.bank, unit])[-size:])
        self.labels.copy_(torch.cat([self.labels, y])[-size:])
        return right
