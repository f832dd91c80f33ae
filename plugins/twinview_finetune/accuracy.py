"""How often a trained classifier is right."""
from __future__ import annotations

from typing import Any, Literal

import torch
from attrs import field
from attrs.validators import and_, gt, le
from torch import nn

from twinview.branch import Branches
from twinview.errors import DataError
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.ranks import summed
from twinview.values import DataFactory, Dims, Features, Traits

IMAGES = 64  # that the encoder sees at once


@part
class Accuracy:
    """Top-1 and top-5 of the head `classifier` of a loss on labeled images."""

    val: str | list[str]  # labeled shards
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    crop_share: float = field(default=1.0, validator=and_(gt(0), le(1)))  # of that box's sides; 0.875: 224 of 256 pixels, as ImageNet's tables do
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of the resize
    loss: str = "finetune.classes"  # the loss whose classifier is scored: finetune.classes, supervised.classes, or its name
    branch: Literal["online", "target"] = "online"  # target: the average (ema)

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features."""
        return Traits(needs=frozenset({"pooled"}), scores=frozenset({"accuracy/top1", "accuracy/top5"}))

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Shards that are not there are refused before the training and not after it."""
        data.require(self.val)

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`accuracy/top1` and `accuracy/top5`, percent of `val`.  Raises DataError for classes that the classifier does not have."""
        branch = branches.online if self.branch == "online" else branches.target
        device = next(branch.parameters()).device
        encoder: nn.Module = branch.encoder.eval()
        head = branch.find(branch.key(self.loss, "classifier")).eval()
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        more: dict[str, Any] = {} if self.interpolation == "bilinear" else {"interpolation": self.interpolation}
        crop = self.crop if self.crop_share == 1 else self.crop_share
        for batch in data.plain(self.val, size=self.size, labels=("class",), batch_size=IMAGES, crop=crop, **more):
            truth = batch.labels["class"].to(device)
            with torch.no_grad():
                features: Features = encoder(batch.images.to(device))
                logits = head(features.at("pooled")).float()
            if int(truth.max()) >= logits.shape[1]:
                fault = f"{self.val} holds class {int(truth.max())}, and the classifier has {logits.shape[1]} classes"
                raise DataError(f"[[evaluate]] finetune.accuracy: {fault}. Name a set of its classes.")
            hits = logits.topk(min(5, logits.shape[1]), 1).indices == truth[:, None]
            counts += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), hits.new_tensor(len(truth), dtype=torch.int64)])
        first, five, every = summed(counts).tolist()
        if not every:
            raise DataError(f"[[evaluate]] finetune.accuracy: {self.val} holds no image.")
        return {"accuracy/top1": 100 * first / every, "accuracy/top5": 100 * five / every}
