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

    It starts with random directions, and every rank holds the same.  `hold` a batch's keys in `after_micro_batch` and `commit` them in `after_step`:
    a key is no negative of its own step, and run.accumulation changes nothing.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, channels: int) -> None:
        """`size` keys of `channels` numbers each."""
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, channels), dim=1))  # [size, channels]
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # where the next key goes
        self._held: list[Tensor] = []  # of the step under way, in no checkpoint

    def negatives(self) -> Tensor:
        """[size, channels], a copy: what a backward pass has saved of it is not changed by a later `push`."""
        return self.keys.clone()

    @torch.no_grad()
    def hold(self, keys: Tensor, micro: int) -> None:
        """Keep every rank's keys [n, channels] of a micro-batch, normalized here, until `commit`; for `after_micro_batch`, once for each.

        `micro`: `progress.micro`, which counts the micro-batches of a step from 0; what a step that was left out had held is forgotten.
        """
        if micro == 0:
            self._held.clear()
        self._held.append(gather_rows(F.normalize(wide(keys.detach()), dim=1)))

    @torch.no_grad()
    def commit(self) -> None:
        """Put what is held in the place of the oldest keys, in the order of micro-batches, then of ranks; for `after_step`.

        Raises ValueError for more keys than the queue holds; `check_queue` refuses such a recipe before it starts.
        """
        every, size = torch.cat(self._held), len(self.keys)
        self._held.clear()
        if len(every) > size:
            raise ValueError(f"{len(every)} keys at once do not fit a queue of {size}")
        self.keys[(self.place + torch.arange(len(every), device=self.keys.device)) % size] = every.to(self.keys.dtype)
        self.place.add_(len(every)).remainder_(size)

    def push(self, keys: Tensor) -> None:
        """`hold` and `commit`, for a step of one micro-batch."""
        self.hold(keys, 0)
        self.commit()

    def extra_repr(self) -> str:
        """`size, channels`."""
        return ", ".join(map(str, self.keys.shape))


def check_queue(size: int, dims: Dims, place: str, option: str = "queue", *, keys: int = 1) -> None:
    """Raise RecipeError for a queue that is larger than the data set, or smaller than a batch; the line says what to write.  For `check`.

    With more keys than images have in an epoch, every image would find keys of its own among its negatives.  `place`: of the part in the
    recipe; `option`: its name there; `keys`: of an image in a batch.
    """
    batch, images = dims.global_batch * keys, dims.dataset_size
    if images and size > images * keys:  # 0: not known here
        fits = images * keys // batch * batch
        remedy = f"Write {option} = {fits}" if fits else "Lower run.batch_size"
        raise RecipeError(f"{place}: {option} = {size} is more than the {images} images, which would meet their own keys as negatives. {remedy}.")
    if size < batch:
        raise RecipeError(f"{place}: {option} = {size} does not hold the {batch} keys of one batch. Write a multiple of {batch}.")
