"""Near duplicates and outliers of a set of images: features propose, pixels confirm."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twinview.analysis.features.same_picture import Grey, Match, match, small
from twinview.data.dataset.read import read_image
from twinview.data.dataset.shards import Shards
from twinview.data.formats.decode import PixelFormat
from twinview.progress import progress

NEIGHBORS = 10  # nearest neighbors whose pixels are compared with an image's
ROWS = 1024  # images whose neighbors are looked for at once
THRESHOLD = 0.94  # correlation of the pixels from which two pictures are copies
DETAIL = 0.4  # and of their fine detail: of two smooth pictures the pixels may correlate by chance
RIDGE = 1e-3  # of the largest variance, added to every direction's where features are whitened


@attrs.frozen
class Pair:
    """Two images that show the same picture."""

    one: int  # places among the images
    other: int
    similarity: float  # cosine of their whitened features
    match: Match

    @property
    def kind(self) -> str:
        """What was done to one of them, in words."""
        cut = self.match.share < 0.95
        return "mirrored cut" if cut and self.match.mirrored else "cut" if cut else "mirrored" if self.match.mirrored else "same"


@attrs.frozen(kw_only=True)
class Curation:
    """What is doubtful in a set of images."""

    groups: list[list[int]]  # images that show one picture; first the largest of each, which is the one to keep
    pairs: list[Pair]  # of them, the most alike first
    outliers: list[tuple[int, float]]  # (image, distance to its nearest neighbors), the farthest first


def curate(features: NDArray[np.floating], images: Shards, ids: NDArray[np.int64], form: PixelFormat, *, threshold: float = THRESHOLD) -> Curation:
    """Near duplicates and outliers by pooled features [N, C]; `ids` [N]: places of the images in `images`.

    Features are centered and whitened, so that what all images share does not count; each image's NEIGHBORS by cosine are proposed, and a pair is
    confirmed where the small grey pictures correlate from `threshold` on, and their fine detail from DETAIL on, one as a cut of the other, mirrored
    or not.  Memory: the features, and 10 kB an image.
    """
    near, similarity = neighbors(whitened(torch.from_numpy(np.asarray(features, np.float32))), NEIGHBORS)
    proposed = sorted({(min(i, j), max(i, j)): s for i, j, s in _edges(near, similarity)}.items())
    wanted = sorted({i for pair, _ in proposed for i in pair})
    greys, area = dict[int, Grey](), dict[int, int]()
    for i in progress(wanted, len(wanted), "read", "images"):
        pixels = read_image(images, int(ids[i]), form)
        greys[i], area[i] = small(pixels), pixels.shape[1] * pixels.shape[2]
    compared = (Pair(i, j, s, match(greys[i], greys[j])) for (i, j), s in progress(proposed, len(proposed), "compare", "pairs"))
    copies = (pair for pair in compared if pair.match.correlation >= threshold and pair.match.detail >= DETAIL)
    pairs = sorted(copies, key=lambda pair: -pair.match.correlation)
    groups = [sorted(group, key=lambda i: (-area[i], i)) for group in _groups(pairs)]
    distance = 1 - similarity.mean(1)
    most = max(1, min(100, len(distance) // 20)) if len(distance) > NEIGHBORS else 0
    order = distance.argsort(descending=True, stable=True)[:most]
    return Curation(groups=groups, pairs=pairs, outliers=[(int(i), float(distance[i])) for i in order])


def whitened(x: Tensor) -> Tensor:
    """Features [N, C] -> [N, C] of length 1, centered, every direction scaled to nearly the same deviation."""
    centered = x - x.mean(0)
    values, axes = torch.linalg.eigh(centered.T.double() @ centered.double() / max(len(x) - 1, 1))
    scale = (values + RIDGE * values.max().clamp(min=1e-12)).rsqrt()
    return F.normalize(((centered.double() @ axes) * scale).float(), dim=1)


def neighbors(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest others of each row of x [N, C], by the scalar product: places [N, k] and products [N, k]; fewer where there are fewer rows."""
    k = min(k, len(x) - 1)
    places, products = torch.empty(len(x), k, dtype=torch.int64), torch.empty(len(x), k)
    for at in progress(range(0, len(x), ROWS), -(-len(x) // ROWS), "neighbors", "blocks"):
        block = x[at : at + ROWS] @ x.T
        rows = torch.arange(len(block))
        block[rows, at + rows] = -torch.inf
        products[at : at + ROWS], places[at : at + ROWS] = block.topk(k, dim=1)
    return places, products


def _edges(near: Tensor, similarity: Tensor) -> Iterator[tuple[int, int, float]]:
    for i, (places, products) in enumerate(zip(near.tolist(), similarity.tolist())):
        yield from ((i, j, s) for j, s in zip(places, products))


def _groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """Images that pairs connect, group by group, in the order of their first image."""
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root.setdefault(i, i) != i:
            root[i] = i = root[root[i]]
        return i

    for pair in pairs:
        a, b = sorted((find(pair.one), find(pair.other)))
        root[b] = a
    found: dict[int, list[int]] = {}
    for i in sorted(root):
        found.setdefault(find(i), []).append(i)
    return list(found.values())
