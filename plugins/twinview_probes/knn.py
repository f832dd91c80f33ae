"""Nearest neighbors among frozen features of whole images."""
from __future__ import annotations

from attrs import field
from torch import Tensor
from torch.nn import functional as F

from twinview.hooks import part
from twinview_probes.images import Embedded
from twinview_probes.whole_images import Classes, Classify, listed, one_or_more


@part
class Knn(Classes):
    """k nearest neighbors by cosine, each voting with weight exp(cosine / temperature) (Wu et al. 2018; DINO).

    Lists of k and of temperatures are scored in one pass over the neighbors, as `knn/top1@k10,t0.07`.
    """

    score = "knn"
    k: int | list[int] = field(default=20, validator=one_or_more(0))  # neighbors that vote, or several numbers of them: [10, 20, 100, 200]
    temperature: float | list[float] = field(default=0.07, validator=one_or_more(0))  # of the votes, or several

    def variants(self) -> tuple[str, ...]:
        """`@k10,t0.07` where there are several."""
        ks, ts = listed(self.k), listed(self.temperature)
        if len(ks) == len(ts) == 1:
            return ("",)
        return tuple(f"@k{k},t{t:g}" for k in ks for t in ts)

    def fit_numbered(self, train: Embedded, classes: int) -> Classify:
        """The neighbors are looked for among all of `train`."""
        bank, labels = F.normalize(train.x, dim=1), train.y
        settings = [(min(k, len(labels)), t) for k in listed(self.k) for t in listed(self.temperature)]

        def classify(x: Tensor) -> dict[str, Tensor]:
            near, places = (F.normalize(x, dim=1) @ bank.T).topk(max(k for k, _ in settings))
            return {name: votes(near[:, :k], labels[places[:, :k]], classes, t) for name, (k, t) in zip(self.variants(), settings)}

        return classify


def votes(near: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Cosines [B, k] in falling order and the neighbours' classes [B, k] -> [B, classes]: sums of exp((cosine - largest) / temperature).

    The largest is taken off against overflow: up to a factor for each row these are DINO's votes.
    """
    weight = ((near - near[:, :1]) / temperature).exp()
    return weight.new_zeros(len(near), classes).scatter_add_(1, labels, weight)


