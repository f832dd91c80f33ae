"""The order of epochs in the format that a run began with."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinview.data.dataset import keyed_order, sorted_order
from twinview.data.dataset.order import EpochSampler
from twinview.recipe.tables import ORDER

Shuffled = keyed_order.Shuffled | sorted_order.Shuffled


def shuffled(starts: NDArray[np.int64], seed: int, window: int, number: int) -> Shuffled:
    """Every sample once an epoch.  `starts` [shards + 1]: where each shard's samples begin; `number`: [data] order, 0 for the newest."""
    make = sorted_order.Shuffled if (number or ORDER) == 1 else keyed_order.Shuffled
    return make(starts=starts, seed=seed, window=window)


def mixed(starts: Sequence[NDArray[np.int64]], weights: Sequence[float], seed: int, window: int, number: int) -> EpochSampler:
    """Each source's share in every epoch; `starts` are of each source's shards."""
    make = sorted_order.Mixed if (number or ORDER) == 1 else keyed_order.Mixed
    return make(starts=tuple(starts), weights=tuple(weights), seed=seed, window=window)
