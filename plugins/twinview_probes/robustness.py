"""How much of a classifier is left on other images of its classes: natural ones, drawings, corrupted ones (ImageNet-A, -R, -Sketch, -C)."""
from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attrs import field
from attrs.validators import and_, gt, le, min_len
from torch import Tensor, nn

from twinview.branch import Branches
from twinview.errors import DataError, RecipeError, closest
from twinview.hooks import hookimpl, part
from twinview.ops.checks import pixels
from twinview.ops.ranks import summed
from twinview.values import DataFactory, Dims, PlainBatch, Progress, Traits
from twinview_probes.images import See, Whole, embed, width_of
from twinview_probes.regression import logistic
from twinview_probes.sets import say_if_shared

FOLDER = Path(__file__).parent / "class_lists"
IMAGES = 64  # that the encoder sees at once
ALEXNET = {  # mean error over severities of each of ImageNet-C's 15 corruptions (Hendrycks and Dietterich 2019)
    **{"gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640},
    **{"defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360},
    **{"snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592},
    **{"contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500},
}


class Classifier(NamedTuple):
    """Images to logits, and the class that each logit is of."""

    see: See
    logits: Any  # features [B, C] -> [B, n]
    classes: Tensor  # [n] class numbers, rising


@part
class Robustness:
    """Top-1 of one classifier on several sets of images of its classes, and its error on corrupted ones beside AlexNet's (mCE).

    The classifier is that of `loss`, of a fine-tuned run (such as "finetune.classes"), or a logistic regression on frozen features of `train`.
    """

    val: str | list[str]  # labeled shards of the classes as they are: robustness/clean
    loss: str = ""  # the loss whose head `classifier` gives the logits of `pooled`; "": a regression on `train`
    train: str | list[str] = ""  # labeled shards for the regression; empty: the run's own
    sets: dict[str, str] = field(factory=dict)  # name -> labeled shards: {sketch = "shards/imagenet-sketch"} gives robustness/sketch
    cut: dict[str, str] = field(factory=dict)  # name of a set -> the list of classes that it has: imagenet_a, imagenet_r or a .toml file
    corrupted: str = ""  # labeled shards with {corruption} and {severity} in their path; "": none
    corruptions: list[str] = field(factory=lambda: [*ALEXNET], validator=min_len(1))  # by the names of ImageNet-C
    severities: list[int] = field(factory=lambda: [1, 2, 3, 4, 5], validator=min_len(1))  # of each, 1 to 5
    size: tuple[int, int] = field(validator=pixels)  # height, width of the images in pixels
    crop: bool = False  # the largest central box of that shape, instead of the whole image squeezed into it
    crop_share: float = field(default=1.0, validator=and_(gt(0), le(1)))  # of that box's sides; corrupted images are never cut further
    on: str = "pooled"  # features of the regression, as for probes.linear

    def __attrs_post_init__(self) -> None:
        self.lists = {name: class_list(text) for name, text in self.cut.items()}
        for name in self.cut:
            if name not in self.sets:
                raise RecipeError(f"cut: there is no set {name!r}.{closest(name, self.sets)}")
        if self.corrupted and not ("{corruption}" in self.corrupted and "{severity}" in self.corrupted):
            raise RecipeError('corrupted: wants a path with {corruption} and {severity}, such as "shards/imagenet-c/{corruption}/{severity}"')
        if self.crop_share < 1 and not self.crop:
            raise ValueError("crop_share is of crop = true. Write both, or leave crop_share out")

    @hookimpl
    def traits(self) -> Traits:
        """Needs pooled features; labels of the run's own shards where the classifier is fitted on them."""
        features = self.on if self.on in ("pooled", "cells") else "levels"
        names = ["clean", *self.sets, *(["mce", "one_minus_mce", "mean_error"] if self.corrupted else [])]
        own = [] if self.loss or self.train else ["labels"]
        scores = frozenset(f"robustness/{name}" for name in names) | self._errors()
        return Traits(needs=frozenset([features, *own]), scores=scores, instead='Write on="cells".')

    @hookimpl
    def check(self, dims: Dims, data: DataFactory) -> None:
        """Wrong features, or shards that are not there, are refused before the training and not after it."""
        width_of(dims.encoder, self.on)
        for shards in filter(None, (self.train, self.val, *self.sets.values(), *(place for _, _, place in self._corrupted()))):
            data.require(shards)

    @hookimpl
    def before_epoch(self, data: DataFactory, progress: Progress) -> None:
        """Read an image of each set before the first step."""
        if progress.step == 0:
            for shards in (self.val, *self.sets.values()):
                next(iter(self._read(data, shards, 1, self._share)), None)
            if not self.loss:
                say_if_shared(data, self.train, self.val, "probes.robustness")

    @hookimpl
    def evaluate(self, branches: Branches, data: DataFactory) -> dict[str, float]:
        """`robustness/clean` and `robustness/NAME` of each set: percent right.  With corruptions `mce`, `one_minus_mce`, `mean_error` (percent).

        mCE is the mean over the 15 corruptions of the error over severities divided by AlexNet's; SiameseIM prints 100 - mCE.  The mean error
        alone is another number.
        """
        device = next(branches.online.parameters()).device
        made = self.classifier(branches, data, device)
        scores = {"robustness/clean": 100 * self._right(made, data, self.val, device, "")}
        for name, shards in self.sets.items():
            scores[f"robustness/{name}"] = 100 * self._right(made, data, shards, device, name)
        errors: dict[str, list[float]] = {}
        for corruption, _, shards in self._corrupted():
            errors.setdefault(corruption, []).append(1 - self._right(made, data, shards, device, "", share=0.0))
        means = {name: sum(found) / len(found) for name, found in errors.items()}
        scores |= {f"robustness/error_{name}": 100 * mean for name, mean in means.items()}
        if means:
            scores["robustness/mean_error"] = 100 * sum(means.values()) / len(means)
        if means.keys() == ALEXNET.keys():
            scores |= {"robustness/mce": (found := mce(means)), "robustness/one_minus_mce": 100 - found}
        return scores

    def classifier(self, branches: Branches, data: DataFactory, device: torch.device) -> Classifier:
        """The trained head, or a regression on `train`."""
        see = Whole(branches.online.encoder, "pooled" if self.loss else self.on)
        if self.loss:
            head: nn.Module = branches.online.find(branches.online.key(self.loss, "classifier"))
            head.eval()
            with torch.no_grad():
                outputs = head(torch.zeros(2, see.channels, device=device)).shape[1]
            return Classifier(see, head, torch.arange(outputs, device=device))
        how = {"size": self.size, "crop": self.crop and self.crop_share, "interpolation": "bilinear"}
        train = embed(see, data, self.train or None, lambda: self._read(data, self.train, IMAGES, self._share), device, False, **how)
        if not len(train.y):
            raise DataError(f"[[evaluate]] probes.robustness: {self.train or '[data] shards'} holds no image.")
        classes, numbers = torch.unique(train.y, return_inverse=True)
        return Classifier(see, logistic(train.x, numbers, len(classes)), classes)

    @property
    def _share(self) -> float:
        return self.crop_share if self.crop else 0.0

    def _errors(self) -> frozenset[str]:
        return frozenset(f"robustness/error_{name}" for name in self.corruptions) if self.corrupted else frozenset()

    def _corrupted(self) -> Iterator[tuple[str, int, str]]:
        if self.corrupted:
            for corruption in self.corruptions:
                for severity in self.severities:
                    yield corruption, severity, self.corrupted.replace("{corruption}", corruption).replace("{severity}", str(severity))

    def _right(self, made: Classifier, data: DataFactory, shards: Any, device: torch.device, name: str, share: float | None = None) -> float:
        """The share of a set's images that is given its class, of those that the set has."""
        classes = made.classes
        if name in self.lists:
            classes = torch.tensor(self.lists[name], device=device)
            if not torch.isin(classes, made.classes).all():
                raise DataError(f"[[evaluate]] probes.robustness: {self.cut[name]} names classes that the classifier does not know.")
        columns = torch.searchsorted(made.classes, classes)
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        for batch in self._read(data, shards, IMAGES, self._share if share is None else share):
            truth = batch.labels["class"].to(device)
            if name not in self.lists:  # a set that is cut counts its own classes from 0
                known = torch.isin(truth, classes)
                truth = torch.where(known, torch.searchsorted(classes, truth).clamp(max=len(classes) - 1), -1)
            if int(truth.max()) >= len(classes) or int(truth.min()) < 0:
                fault = f"{shards} holds a class beyond the {len(classes)} of {self.cut.get(name) or 'the classifier'}"
                raise DataError(f"[[evaluate]] probes.robustness: {fault}. Name a set of its classes.")
            with torch.no_grad():
                answers = made.logits(made.see(batch.images.to(device)).flatten(1))[:, columns].argmax(1)
            counts += torch.stack([(answers == truth).sum(), truth.new_tensor(len(truth))])
        right, every = summed(counts).tolist()
        if not every:
            raise DataError(f"[[evaluate]] probes.robustness: {shards} holds no image.")
        return float(right / every)

    def _read(self, data: DataFactory, shards: str | list[str], images: int, share: float) -> Iterator[PlainBatch]:
        crop = True if share == 1 else share or False
        return data.plain(shards or None, size=self.size, labels=("class",), batch_size=images, crop=crop)


def mce(errors: dict[str, float]) -> float:
    """Errors 0..1 of each of the 15 corruptions, means over severities -> mCE in percent."""
    return 100 * sum(errors[name] / alexnet for name, alexnet in ALEXNET.items()) / len(ALEXNET)


def class_list(name: str) -> list[int]:
    """Class numbers by name, or of a .toml file with `classes`.  Raises RecipeError."""
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    path = Path(name).expanduser() if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"cut: there is no list of classes {name!r}.{closest(name, known)} Or write a .toml file of your own")
    try:
        found = [int(number) for number in tomllib.loads(path.read_text(encoding="utf-8"))["classes"]]
    except (ValueError, KeyError, TypeError) as e:
        raise RecipeError(f"cut: {name} is no list of classes: {e}. Write classes = [1, 2, ...]") from None
    return found
