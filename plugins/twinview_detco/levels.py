"""Contrast of images, of patches, and between them, at every level of the network (DetCo, eq. 1 to 4)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import field
from attrs.validators import deep_iterable, ge, gt
from torch import Tensor, nn

from twinview.branch import Branches
from twinview.hooks import hookimpl, part
from twinview.ops import Queue, check_queue, info_nce_queue, mlp
from twinview.ops.checks import known_levels
from twinview.values import Dims, Head, Progress, Role, Step, Traits

KINDS = ("image", "patches")


class OfLevel(nn.Module):
    """The means of one or several maps [B, C, h, w], side by side, through two linear layers -> [B, channels]."""

    def __init__(self, width: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.mlp = mlp(width, hidden or width, channels, norm=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps are of one level, those of patches in the order of their set."""
        found: Tensor = self.mlp(torch.cat([m.mean((2, 3)) for m in maps], 1))
        return found


@part
class Levels:
    """InfoNCE against queues, summed over levels with `weights`: image to image, patches to patches, patches to image.

    A level's images and patches have a head and a queue each; patches go to the other view's image with the image's queue.  Gradient reaches
    queries alone.
    """

    levels: list[str] = field(factory=lambda: ["c2", "c3", "c4", "c5"])  # of the encoder
    weights: list[float] = field(factory=lambda: [0.1, 0.4, 0.7, 1.0], validator=deep_iterable(ge(0)))  # of each level
    hidden: int = field(default=0, validator=ge(0))  # width of the heads' hidden layer; 0: that of their input, nine times as much for patches
    channels: int = field(default=128, validator=gt(0))  # width of queries and keys
    queue: int = field(default=65536, validator=gt(0))  # keys of each of the queues, two a level
    temperature: float = field(default=0.2, validator=gt(0))  # of the softmax over cosines

    def __attrs_post_init__(self) -> None:
        if len(self.weights) != len(self.levels):
            raise ValueError(f"weights wants {len(self.levels)} numbers, one for each of the levels, not {self.weights}")

    @hookimpl
    def traits(self) -> Traits:
        """Needs levels, and views with two sets of patches."""
        return Traits(needs=frozenset({"levels", "patches"}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """For each level an averaged head and a queue, of images and of patches."""
        found: dict[str, Head] = {}
        for level in self.levels:
            for kind, maps in zip(KINDS, (1, len(dims.sets[0]))):
                found[f"{kind}_{level}"] = Head(OfLevel(dims.width(level) * maps, self.hidden, self.channels))
                found[f"queue_{kind}_{level}"] = Head(Queue(self.queue, self.channels), "state")
        return found

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Levels are those of the encoder; a queue holds at least a batch and at most an epoch of keys."""
        check_queue(self.queue, dims, "[[loss]] detco.levels")
        known_levels(self.levels, dims, "[[loss]] detco.levels")

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`levels`, nats: the weighted sum.  Notes its terms before their weight: `image/LEVEL`, `patches/LEVEL`, `across/LEVEL`."""
        total = []
        for level, weight in zip(self.levels, self.weights):
            query, key = self._rows(step, level, "online"), self._rows(step, level, "target")
            for name, asks, of in (("image", "image", "image"), ("patches", "patches", "patches"), ("across", "patches", "image")):
                negatives = step.branches.online.of(self, f"queue_{of}_{level}").negatives()
                term = info_nce_queue(query[asks], key[of], negatives, self.temperature).mean()
                step.note(f"{name}/{level}", term)
                total.append(weight * term)
        return {"levels": torch.stack(total).sum()}

    @hookimpl
    def after_micro_batch(self, branches: Branches, step: Step, progress: Progress) -> None:
        """Keys wait for the end of the step."""
        for level in self.levels:
            for kind, rows in self._rows(step, level, "target").items():
                branches.online.of(self, f"queue_{kind}_{level}").hold(rows, progress.micro)

    @hookimpl
    def after_step(self, branches: Branches) -> None:
        """Then they take the place of the oldest."""
        for level in self.levels:
            for kind in KINDS:
                branches.online.of(self, f"queue_{kind}_{level}").commit()

    def _rows(self, step: Step, level: str, role: Role) -> dict[str, Tensor]:
        """[B, channels] of the image and of the set of patches: view 0 and the first set are online, view 1 and the second set the target's."""
        branch, features, place = (step.branches.online, step.online, 0) if role == "online" else (step.branches.target, step.target, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "online"):
            image, patches = features[step.pairs[0][place]].at(level), [features[view].at(level) for view in step.geometry.sets[place]]
            found = {"image": branch.of(self, f"image_{level}")([image]), "patches": branch.of(self, f"patches_{level}")(patches)}
        return {kind: rows.detach() if role == "target" else rows for kind, rows in found.items()}
