"""A queue of keys: the negatives of MoCo and of what follows it."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinview.errors import RecipeError
from twinview.ops.means import wide
from twinview.ops.ranks import gather_rows
from twinview.values import Dims


class Queue(nn.Module):
    """The last `size` keys of all ranks, unit vectors (MoCo, section 3.2).  Give it to the core as `Head(Queue(...), "state")`.

    It starts with random directions, and every rank holds the same.  Write it after the loss of the same images has read it: a key is no negative of
    its own step.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, channels: int) -> None:
        """`size` keys of `channels` numbers each."""
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, channels), dim=1))  # [size, channels]
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # where the next key goes

    def negatives(self) -> Tensor:
        """[size, channels], a copy: what a backward pass has saved of it is not changed by a later `push`."""
        return self.keys.clone()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put every rank's keys [n, channels], normalised here, in the place of the oldest, in the order of the ranks.  All ranks call it.

        Raises ValueError for more keys at once than the queue holds; `check_queue` refuses such a recipe before it starts.
        """
        every = gather_rows(F.normalize(wide(keys.detach()), dim=1))
        size = len(self.keys)
        if len(every) > size:
            raise ValueError(f"{len(every)} keys at once do not fit a queue of {size}")
        self.keys[(self.place + torch.arange(len(every), device=self.keys.device)) % size] = every.to(self.keys.dtype)
        self.place.add_(len(every)).remainder_(size)

    def extra_repr(self) -> str:
        """`size, channels`."""
        return ", ".join(map(str, self.keys.shape))


def check_queue(size: int, dims: Dims, place: str, option: str = "queue", *, keys: int = 1) -> None:
    """Raise RecipeError for a queue that is larger than the data set, or smaller than a batch; the line says what to write.

    With more keys than images have in an epoch, every image would find keys of its own among its negatives.  `place`: of the part in the
    recipe; `option`: its name there; `keys`: of an image in a batch.
    """
    batch, images = dims.global_batch * keys, dims.dataset_size
    if size > images * keys:
        fits = images * keys // batch * batch
        remedy = f"Write {option} = {fits}" if fits else "Lower run.batch_size"
        raise RecipeError(f"{place}: {option} = {size} is more than the {images} images, which would meet their own keys as negatives. {remedy}.")
    if size < batch:
        raise RecipeError(f"{place}: {option} = {size} does not hold the {batch} keys of one batch. Write a multiple of {batch}.")
