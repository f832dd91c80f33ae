"""A classifier on the encoder, trained with labels: fine-tuning, or a linear probe where the encoder is frozen."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from attrs import field
from attrs.validators import and_, ge, gt, le, lt
from torch import Tensor
from torch.nn import functional as F

from twinview.branch import Branch, Branches, Head, ParamRule
from twinview.hooks import hookimpl, part
from twinview.ops.checks import share
from twinview.ops.heads import LinearClassifier
from twinview.ops.means import wide
from twinview.ops.seeding import seed_of
from twinview.values import Dims, Features, Role, Step, Traits
from twinview_finetune.mixing import Mixing, erased, mixed, targets


@part
class Classes:
    """Cross-entropy of a classifier on `pooled`, with the class labels of the shards, mixup, CutMix, smoothing and random erasing.

    MAE's fine-tuning: norm = "layer", std = 2e-5, mixup = 0.8, cutmix = 1.0, smoothing = 0.1, erase = 0.25, with [[extra]] finetune.layers and
    [augment] finetune.randaugment.  A linear probe of a table: frozen = true, and norm = "batch" for MAE's.
    """

    norm: Literal["none", "batch", "layer"] = "none"  # in front: BatchNorm without affine (MAE's probe), a new LayerNorm (fine-tuning)
    std: float = field(default=0.01, validator=gt(0))  # of the classifier's random start; its bias starts at 0
    frozen: bool = False  # the encoder is not trained and runs in eval mode
    mixup: float = field(default=0.0, validator=ge(0))  # alpha; 0: none
    cutmix: float = field(default=0.0, validator=ge(0))  # alpha; 0: none
    mix_probability: float = field(default=1.0, validator=share)  # of a batch
    switch: float = field(default=0.5, validator=share)  # chance of CutMix where both are on
    smoothing: float = field(default=0.0, validator=and_(ge(0), lt(1)))  # share of the target that all classes have alike
    erase: float = field(default=0.0, validator=and_(ge(0), le(1)))  # chance that a box of an image is noise
    ema: bool = False  # the target branch follows, [target] momentum = 0.9999: evaluations with branch = "target" score the average
    seed: int = field(default=0, validator=ge(0))  # of mixing and erasing

    def __attrs_post_init__(self) -> None:
        if self.frozen and (self.mixup or self.cutmix or self.erase):
            raise ValueError("frozen encoders are probed on images as they are. Leave mixup, cutmix and erase out")
        self.mixing = Mixing(self.mixup, self.cutmix, self.mix_probability, self.switch, self.smoothing)

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features and labels."""
        return Traits(needs=frozenset({"pooled", "labels", *(["averaged_target"] if self.ema else [])}))

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """The `classifier`."""
        kind: Literal["averaged", "online_only"] = "averaged" if self.ema else "online_only"
        return {"classifier": Head(LinearClassifier(dims.width("pooled"), max(dims.classes, 1), self.norm, self.std), kind)}

    @hookimpl
    def param_groups(self, name: str, parameter: Tensor) -> ParamRule | None:
        """The encoder stays as it is where it is frozen."""
        return ParamRule(frozen=True) if self.frozen and name.startswith("encoder.") else None

    @hookimpl
    def encode(self, branch: Branch, images: Tensor, hidden: Tensor | None, view: int, role: Role, step: Step) -> Features:
        """The encoder on erased and mixed images; a frozen one in eval mode, without gradient."""
        encoder = branch.encoder
        if self.frozen:
            was = encoder.training
            encoder.eval()
            with torch.no_grad():
                found = cast(Features, encoder(images, hidden))
            encoder.train(was)
            return found
        if role == "online":
            if self.erase:
                images = erased(images, step.batch.seeds, self.erase, ("finetune.erase", self.seed, step.batch.epoch, view))
            images = mixed(images, self._truth(step, images.device), self._classes(step), self.mixing, self._draw(step, view))[0]
        return cast(Features, encoder(images, hidden))

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`classes`, in nats; notes the accuracy on the batch where no images are mixed."""
        head, found, right = step.head(self, "classifier"), [], []
        for view in range(len(step.batch.images)):
            logits = wide(step.apply(head, view, "online", on="pooled"))
            truth = self._truth(step, logits.device)
            shape = step.batch.images[view].shape
            target = targets(shape, truth, logits.shape[1], self.mixing, self._draw(step, view))
            found.append(-(target * F.log_softmax(logits, 1)).sum(1).mean())
            right.append((logits.argmax(1) == truth).float())
        if not (self.mixup or self.cutmix):
            step.note("classes/accuracy", torch.stack(right))
        return {"classes": torch.stack(found).mean()}

    @hookimpl
    def after_step(self, branches: Branches) -> None:
        """The average has the online branch's statistics of BatchNorm: its own would never move."""
        if self.ema:
            own = dict(branches.online.named_buffers())
            for name, value in branches.target.named_buffers():
                value.copy_(own[name])

    def _classes(self, step: Step) -> int:
        return cast(LinearClassifier, step.branches.online.of(self, "classifier")).layer.out_features

    def _truth(self, step: Step, device: torch.device) -> Tensor:
        return step.batch.labels["class"].to(device)

    def _draw(self, step: Step, view: int) -> int:
        """Of the mixing of a batch: by its first sample and the step, so that ranks mix differently and a resumed run alike."""
        return seed_of("finetune.mix", self.seed, int(step.batch.seeds[0]), step.progress.step, step.progress.micro, view)
