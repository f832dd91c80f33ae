"""Instance discrimination with a memory bank and noise-contrastive estimation."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.hooks import hookimpl, part
from twinview.ops import mlp
from twinview.ops.checks import share
from twinview.ops.means import wide
from twinview.ops.ranks import gather_rows, mean_over_ranks
from twinview.values import Dims, Head, Progress, Step, Traits

MOST = 1 << 24  # images: negatives are drawn as float32 shares of their number


class Bank(nn.Module):
    """A unit vector for each image of the data set, at first random, and the constant of the softmax over all of them."""

    rows: Tensor
    constant: Tensor

    def __init__(self, images: int, channels: int) -> None:
        """`images` vectors of `channels` numbers."""
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(images, channels), dim=1))  # [images, channels], by sample id
        self.register_buffer("constant", torch.zeros(()))  # Z; 0: not estimated yet
        self._held: list[tuple[Tensor, Tensor]] = []  # ids and features of the step under way, in no checkpoint

    def estimated(self, likeness: Tensor) -> Tensor:
        """Z, estimated once from the first batch: images times the mean of exp(v . f / tau) over random images, on all ranks."""
        found = mean_over_ranks(likeness.detach().mean()) * len(self.rows)
        self.constant.copy_(torch.where(self.constant > 0, self.constant, found))
        return self.constant

    @torch.no_grad()
    def hold(self, ids: Tensor, seen: Tensor, micro: int) -> None:
        """Keep what every rank saw of its images, ids [n] and vectors [n, channels], until `commit`; `micro` counts the step's micro-batches."""
        if micro == 0:  # what a step that was left out had held is forgotten
            self._held.clear()
        self._held.append((gather_rows(ids.to(self.rows.device)), gather_rows(seen.detach().to(self.rows.dtype))))

    @torch.no_grad()
    def commit(self, momentum: float) -> None:
        """rows <- momentum * rows + (1 - momentum) * seen, brought to unit length; of an image that came twice, the mean of what was seen."""
        ids, seen = (torch.cat(tensors) for tensors in zip(*self._held, strict=True))
        self._held.clear()
        images, place, times = torch.unique(ids, return_inverse=True, return_counts=True)
        mean = torch.zeros_like(self.rows[images]).index_add_(0, place, seen) / times[:, None]
        self.rows[images] = F.normalize(momentum * self.rows[images] + (1 - momentum) * mean, dim=1)


@part
class Image:
    """A view finds its image among all images of the data set, by what earlier epochs saw of each (InstDist, eq. 2 to 8).

    The softmax over all images is replaced by noise-contrastive estimation against `negatives` of them, drawn uniformly.
    """

    channels: int = field(default=128, validator=gt(0))  # width of the vectors
    negatives: int = field(default=4096, validator=ge(1))  # images drawn for each view
    temperature: float = field(default=0.07, validator=gt(0))  # of the softmax over cosines
    momentum: float = field(default=0.5, validator=share)  # of an image's vector, when the image comes again

    @hookimpl
    def traits(self) -> Traits:
        """Needs the pooled features, and numbered samples."""
        return Traits(needs=frozenset({"pooled", "ids"}))

    @hookimpl
    def check(self, dims: Dims) -> None:
        """Negatives are drawn from the data set; ids beyond 2^24 have no exact share."""
        if dims.dataset_size > MOST:
            raise RecipeError(f"[[loss]] instdist.image: a memory bank holds up to {MOST} images, not {dims.dataset_size}. Choose another loss.")

    @hookimpl
    def heads(self, dims: Dims) -> Mapping[str, Head]:
        """`projector`, one linear layer, and the `bank`, kept once: 4 bytes x channels x images in every checkpoint."""
        projector = mlp(dims.width("pooled"), 0, self.channels, layers=1)
        return {"projector": Head(projector, "online_only"), "bank": Head(Bank(dims.dataset_size, self.channels), "state")}

    @hookimpl
    def loss(self, step: Step) -> dict[str, Tensor]:
        """`image`, nats: the mean over images and over the views that the online branch sees."""
        bank: Bank = step.branches.online.of(self, "bank")
        ids = step.batch.ids.to(bank.rows.device)
        terms = []
        for view in self._views(step):
            feature = F.normalize(wide(step.apply(step.head(self, "projector"), view, "online", on="pooled")), dim=1)
            drawn = (step.uniform(f"instdist/{view}", self.negatives) * len(bank.rows)).long().clamp(max=len(bank.rows) - 1)
            terms.append(self.estimation(feature, bank, ids, drawn))
        return {"image": torch.stack(terms).mean()}

    def estimation(self, feature: Tensor, bank: Bank, ids: Tensor, drawn: Tensor) -> Tensor:
        """-log h(i) - sum over the drawn of log(1 - h), h = P / (P + m / n): [B, C], bank of n, ids [B], drawn [B, m] -> scalar."""
        with torch.autocast(feature.device.type, enabled=False):
            rows = bank.rows.to(feature.dtype)
            own = (feature * rows[ids]).sum(1) / self.temperature  # [B]
            others = torch.einsum("bc,bmc->bm", feature, rows[drawn]) / self.temperature  # [B, m]
            noise = torch.log(bank.estimated(others.exp()) * (self.negatives / len(rows)))  # log(Z m / n): h = sigmoid(logit - noise)
            return -(F.logsigmoid(own - noise) + F.logsigmoid(noise - others).sum(1)).mean()

    @hookimpl
    def after_micro_batch(self, step: Step, progress: Progress) -> None:
        """Holds what all ranks saw of their images."""
        projector = step.head(self, "projector")
        seen = [F.normalize(wide(step.apply(projector, view, "online", on="pooled")), dim=1) for view in self._views(step)]
        step.branches.online.of(self, "bank").hold(step.batch.ids, torch.stack(seen).mean(0), progress.micro)

    @hookimpl
    def after_step(self, step: Step) -> None:
        """The images' vectors move toward it."""
        step.branches.online.of(self, "bank").commit(self.momentum)

    def _views(self, step: Step) -> list[int]:
        return sorted({online for online, _ in step.pairs}) or list(range(len(step.online)))
