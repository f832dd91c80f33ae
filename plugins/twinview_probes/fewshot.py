"""Few labeled images: a logistic regression on frozen features, as SiameseIM's "1 %" column and MSN have it."""
from __future__ import annotations

from pathlib import Path

import torch
from attrs import field
from attrs.validators import and_, ge, gt, le
from torch import Tensor
from torch.nn import functional as F

from twinview.errors import DataError, RecipeError
from twinview.hooks import part
from twinview.ops.ranks import from_first
from twinview.ops.seeding import seed_of
from twinview_probes.images import Embedded, name_hash
from twinview_probes.whole_images import Answers, Classes, Classify, Truth


@part
class FewShot(Classes):
    """Logistic regression on a share of `train`: each feature minus its own mean and of length 1, no intercept, decay `decay` / n.

    The images are a share of each class (or `per_class` of each), drawn `draws` times, or those that the file `images` names, one a line, such as
    the published lists of 1 % and 10 % of ImageNet.  SiameseIM and MSN take the class token without the final norm: encoder.pooled=token
    encoder.final_norm=false.
    """

    score = "fewshot"
    learns_all = False
    share: float = field(default=0.01, validator=and_(gt(0), le(1)))  # of the images of each class, at least one
    per_class: int = field(default=0, validator=ge(0))  # images of each class instead
    images: str = ""  # a file of names of images instead: the last part of their keys, with or without suffix
    draws: int = field(default=1, validator=gt(0))  # of several the scores are means, and fewshot/deviation is that of top1
    decay: float = field(default=0.1, validator=gt(0))  # times the number of images: 0.1 for ViT-B, 0.01 for ViT-L
    seed: int = field(default=0, validator=ge(0))  # of the images drawn

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.images and (self.per_class or self.draws > 1):
            raise ValueError("images names the images that per_class and draws would draw. Leave these out, or images")

    def names(self) -> frozenset[str]:
        """With the deviation over several draws."""
        of = ("", *(f"{baseline}/" for baseline in self.baselines))
        return super().names() | (frozenset(f"fewshot/{name}deviation" for name in of) if self.draws > 1 else frozenset())

    def fit_numbered(self, train: Embedded, classes: int) -> Classify:
        """A regression for each draw."""
        found = [self._fit(train, rows, classes) for rows in ([self._named(train)] if self.images else self._drawn(train, classes))]

        def classify(x: Tensor) -> Answers:
            return {f"@{n}": own_scale(x).to(weight.dtype) @ weight for n, weight in enumerate(found)}

        return classify

    def _measured(self, classify: Classify, val: Embedded, truth: Truth) -> dict[str, float]:
        """Means over the draws."""
        count = 1 if self.images else self.draws
        each = [super(FewShot, self)._measured(_one(classify, n), val, truth) for n in range(count)]
        numbers = {name: torch.tensor([one[name] for one in each], dtype=torch.float64) for name in each[0]}
        found = {name: float(values.mean()) for name, values in numbers.items()}
        return found | ({"deviation": float(numbers[next(iter(numbers))].std())} if len(each) > 1 else {})

    def _fit(self, train: Embedded, rows: Tensor, classes: int) -> Tensor:
        return from_first(softmax_regression(own_scale(train.x[rows]), train.y[rows], classes, self.decay / len(rows)))

    def _drawn(self, train: Embedded, classes: int) -> list[Tensor]:
        found = []
        for draw in range(self.draws):
            generator = torch.Generator().manual_seed(seed_of(self.seed, "probes.fewshot", draw))
            order = torch.randperm(len(train.y), generator=generator)
            ranked = order[train.y.cpu()[order].argsort(stable=True)]  # by class, in a drawn order within each
            counts = torch.bincount(train.y.cpu(), minlength=classes)
            wanted = torch.full_like(counts, self.per_class) if self.per_class else (counts * self.share).round().long()
            few = int(counts.min())
            if self.per_class > few:
                said = f"per_class = {self.per_class}, and a class of {self.train or '[data] shards'} has {few} images"
                raise DataError(f"[[evaluate]] probes.fewshot: {said}. Write {few} or less.")
            starts = counts.cumsum(0) - counts
            place = torch.arange(len(ranked)) - starts.repeat_interleave(counts)
            found.append(ranked[place < wanted.clamp(min=1).repeat_interleave(counts)].sort().values.to(train.y.device))
        return found

    def _named(self, train: Embedded) -> Tensor:
        try:
            names = [line.strip() for line in Path(self.images).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as e:
            raise RecipeError(f"[[evaluate]] probes.fewshot images: {self.images} cannot be read: {e}.") from None
        wanted = torch.tensor(sorted({name_hash(name) for name in names}), device=train.names.device)
        rows = torch.isin(train.names, wanted).nonzero()[:, 0]
        if len(rows) < len(wanted):
            said = f"{self.images} names {len(wanted)} images, and {self.train or '[data] shards'} holds {len(rows)} of them"
            raise DataError(f"[[evaluate]] probes.fewshot: {said}. Name the set that the list is of.")
        return rows


def _one(classify: Classify, draw: int) -> Classify:
    """The regression of one draw."""
    return lambda x: {"": classify(x)[f"@{draw}"]}


def own_scale(x: Tensor) -> Tensor:
    """Each feature [N, C] minus its own mean, divided by its own length; float64."""
    own = x.double()
    return F.normalize(own - own.mean(1, keepdim=True), dim=1)


def softmax_regression(x: Tensor, y: Tensor, classes: int, decay: float, iterations: int = 300) -> Tensor:
    """min (1/n) sum cross-entropy + decay / 2 |W|^2 without intercept, float64: features [N, C] -> W [C, classes]."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=iterations, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight, y) + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[arg-type, no-untyped-call, unused-ignore]
    return weight.detach()
