"""InfoNCE: telling the positive among negatives, in fp32 whatever the autocast.

All take vectors of any length and L2-normalize them here; all give nats.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twinview.ops.means import wide
from twinview.ops.ranks import gather_with_place


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE within sets: query [B, K, C] and key [B, K, C] -> [B], the mean of a set's K rows (van den Oord et al. 2018).

    Row k's positive is key k of its own set, the set's other keys are its negatives.  Gradient goes to both.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = F.normalize(wide(query), dim=2) @ F.normalize(wide(key), dim=2).mT / temperature
        return -logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)


def info_nce_queue(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE against one set of negatives: query [N, C], key [N, C], negatives [K, C] -> [N] (MoCo, eq. 1).

    Row i's positive is key i; the same K negatives serve every row, and no other row's key is one.  `negatives` are unit vectors already, as
    a `Queue` keeps them.  Gradient goes to whichever wants one: detach what should have none.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = F.normalize(wide(query), dim=1), F.normalize(wide(key), dim=1)
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.to(query.dtype).mT], 1) / temperature
        return torch.logsumexp(logits, 1) - logits[:, 0]


def info_nce_batch(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE within the batch of all ranks: query [n, C], key [n, C] -> [n] (MoCo v3, algorithm 1, without its factor 2 tau).

    Row i's positive is key i, its negatives are the keys of all other images, those of other ranks too.  Gradient goes to both, to keys of
    other ranks as well where keys want one.
    """
    with torch.autocast(query.device.type, enabled=False):
        keys, first = gather_with_place(F.normalize(wide(key), dim=1))
        logits = F.normalize(wide(query), dim=1) @ keys.mT / temperature
        return F.cross_entropy(logits, first + torch.arange(len(query), device=query.device), reduction="none")


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views of n images a rank: a [n, C], b [n, C] -> [2n], the losses of a's rows, then of b's (SimCLR, eq. 1).

    The positive of a row is the other view of its image; its negatives are both views of every other image of all ranks.  Gradient goes to
    all of them, those of other ranks included, so that with gradients averaged over ranks a step follows the loss of the whole batch.  The mean
    of the 2n is the paper's loss; the released code takes twice that.
    """
    with torch.autocast(a.device.type, enabled=False):
        n = len(a)
        own = F.normalize(wide(torch.cat([a, b])), dim=1)
        every, first = gather_with_place(torch.stack(own.chunk(2), 1))  # [B, 2, C]: one exchange for both views
        logits = own @ every.flatten(0, 1).mT / temperature  # [2n, 2B], columns: image, view
        image = 2 * (first + torch.arange(n, device=a.device))
        itself, other = torch.cat([image, image + 1]), torch.cat([image + 1, image])
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        return F.cross_entropy(logits, other, reduction="none")
